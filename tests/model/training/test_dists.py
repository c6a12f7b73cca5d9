"""DISTS is torchmetrics' and its authors' for the same weights; without weights it says where to put them."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dualtoken.model.training.dists import Dists, load_dists
from dualtoken.model.training.vgg16 import MissingWeightsError, shipped_with_torchmetrics
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from torchmetrics.functional.image import dists as torchmetrics_dists
    from torchvision.models.vgg import cfgs, make_layers


@pytest.fixture(scope="module")
def vgg16() -> nn.Sequential:
    """Random weights of VGG16's features, of the size that keeps numbers as large as they were."""
    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.normal_(layer.bias, std=0.1)
    return features


@pytest.fixture(scope="module")
def backbone(vgg16: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in vgg16.state_dict().items()}, file)
    return file


@pytest.fixture(scope="module")
def dists(backbone: Path) -> Dists:
    return load_dists(backbone)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    """Return images of 0 to 1: unlike, nearly alike, equal, and flat. Their sides do not halve evenly."""
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(4, 3, 50, 67, generator=generator)
    second = torch.rand(4, 3, 50, 67, generator=generator)
    second[1] = first[1] + 0.01 * second[1]
    second[2] = first[2]
    first[3] = 0.5
    return first, second


def normalised(pictures: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pictures[0] * 2 - 1, pictures[1] * 2 - 1


def test_distances_are_those_of_torchmetrics(
    dists: Dists, vgg16: nn.Sequential, pictures: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchmetrics would download the features.
    monkeypatch.setattr(torchmetrics_dists, "vgg16", lambda **_: SimpleNamespace(features=vgg16))
    expected = torchmetrics_dists.DISTSNetwork()(*pictures)
    found = dists(*normalised(pictures))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert found[0].item() > 10 * found[1].item() > 0


def test_distances_are_those_of_dists_pytorch(
    dists: Dists, vgg16: nn.Sequential, pictures: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with vision_imports():
        peer = pytest.importorskip("DISTS_pytorch.DISTS_pt", reason="DISTS-pytorch is not installed")
    monkeypatch.setattr(peer.models, "vgg16", lambda **_: SimpleNamespace(features=vgg16))
    network = peer.DISTS(load_weights=False)
    weights = torch.load(Path(peer.__file__).with_name("weights.pt"), weights_only=True)
    network.load_state_dict(weights, strict=False)
    expected = network(*pictures)
    torch.testing.assert_close(dists(*normalised(pictures)), expected, rtol=0, atol=2e-6)


def test_equal_pictures_are_at_no_distance(dists: Dists, pictures: tuple[Tensor, Tensor]) -> None:
    picture = normalised(pictures)[0]
    assert dists(picture, picture).tolist() == [0, 0, 0, 0]


def test_a_picture_s_distance_does_not_depend_on_the_others(
    dists: Dists, pictures: tuple[Tensor, Tensor]
) -> None:
    # In float64: a distance is 1 less a sum near 1, so its rounding is that of 1.
    precise = copy.deepcopy(dists).double()
    first, second = (picture.double() for picture in normalised(pictures))
    alone = precise(first[1:2], second[1:2])
    torch.testing.assert_close(alone, precise(first, second)[1:2], rtol=1e-5, atol=1e-8)


def test_torch_s_files_are_read_as_safetensors_are(
    dists: Dists, vgg16: nn.Sequential, tmp_path: Path
) -> None:
    torch.save(
        {f"features.{name}": tensor for name, tensor in vgg16.state_dict().items()}, tmp_path / "vgg.pth"
    )
    heads = torch.load(shipped_with_torchmetrics("dists_models/weights.pt"), weights_only=True)
    save_file(
        {name: tensor.detach().clone() for name, tensor in heads.items()}, tmp_path / "heads.safetensors"
    )
    again = load_dists(tmp_path / "vgg.pth", tmp_path / "heads.safetensors")
    for name, tensor in dists.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_missing_and_other_weights_are_refused_by_name(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingWeightsError, match=r"DISTS has no weights at .*/nowhere\.pt: put them there"):
        load_dists(backbone, tmp_path / "nowhere.pt")
    with pytest.raises(
        MissingWeightsError, match=r"vgg\.safetensors holds no alpha of shape \(1, 1475, 1, 1\)"
    ):
        load_dists(backbone, backbone)
    (tmp_path / "damaged.safetensors").write_bytes(backbone.read_bytes()[:1000])
    with pytest.raises(MissingWeightsError, match=r"damaged\.safetensors cannot be read as weights alone"):
        load_dists(tmp_path / "damaged.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        MissingWeightsError, match=r"DISTS has no VGG16 weights at .*: download https://.* to there"
    ):
        load_dists()
