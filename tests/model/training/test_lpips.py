"""LPIPS is torchmetrics' for the same weights, and without weights says where to put them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import LpipsConfig
from dualtoken.model.training.lpips import Lpips, load_lpips
from dualtoken.model.training.vgg16 import MissingWeightsError
from dualtoken.model.vision.imports import vision_imports
from tests.model.training.steps import changed, fresh_state, run, snapshot, training

with vision_imports():
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models.vgg import cfgs, make_layers


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of VGG16's features under torchvision's names, and one that LPIPS does not read."""
    torch.manual_seed(0)
    state = {f"features.{name}": tensor for name, tensor in make_layers(cfgs["D"]).state_dict().items()}
    file = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, file)
    return file


@pytest.fixture(scope="module")
def lpips(backbone: Path) -> Lpips:
    return load_lpips(backbone)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    second = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return first, second


def test_distances_are_those_of_torchmetrics(
    lpips: Lpips, backbone: Path, pictures: tuple[Tensor, Tensor]
) -> None:
    expected_lpips = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    weights = torch.load(backbone, weights_only=True)
    layers: list[torch.nn.Module] = []
    for block in range(1, 6):
        layers += getattr(expected_lpips.net, f"slice{block}")
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.Conv2d):
            weight = weights[f"features.{index}.weight"]
            bias = weights[f"features.{index}.bias"]
            layer.load_state_dict({"weight": weight, "bias": bias})
    found = lpips(*pictures)
    expected = expected_lpips(*pictures)
    assert expected.mean() > 1e-4
    torch.testing.assert_close(found, expected.mean(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(lpips.per_image(*pictures), expected.flatten(), rtol=1e-5, atol=1e-8)
    wide = (pictures[0][:, :, :20], pictures[1][:, :, :20])
    torch.testing.assert_close(lpips.per_image(*wide), expected_lpips(*wide).flatten(), rtol=1e-5, atol=1e-8)


def test_a_picture_is_at_no_distance_from_itself(lpips: Lpips, pictures: tuple[Tensor, Tensor]) -> None:
    assert lpips(pictures[0], pictures[0]).item() == 0
    assert lpips(*pictures).item() > 0


def test_only_the_pictures_get_a_gradient(lpips: Lpips, pictures: tuple[Tensor, Tensor]) -> None:
    picture, original = (image.clone().requires_grad_() for image in pictures)
    lpips(picture, original).backward()
    assert picture.grad is not None
    assert original.grad is None
    for parameter in lpips.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_a_step_counts_it_by_its_weight_and_leaves_it_as_it_is(lpips: Lpips, config: TokenizerConfig) -> None:
    before = snapshot(lpips)
    with_it = fresh_state(config, training(perceptual=LpipsConfig(kind="lpips", weight=3.0)), lpips)
    metrics = run(with_it, 1)[0]
    plain = run(fresh_state(config), 1)[0]
    assert metrics.perceptual is not None
    assert metrics.perceptual > 0
    assert metrics.loss == pytest.approx(plain.loss + 3 * metrics.perceptual, rel=1e-6)
    assert changed(lpips, before) == set()
    assert not [name for name in with_it.state_dict()["model"] if "features" in name]


def test_without_weights_the_error_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = rf"{tmp_path}/hub/checkpoints/vgg16-397923af\.pth"
    expected = rf"no VGG16 weights at {file}: download https://.*train\.perceptual=none"
    with pytest.raises(MissingWeightsError, match=expected):
        load_lpips()
    with pytest.raises(
        MissingWeightsError, match=r"no weights at .*/nowhere\.pth: put them there, or name the file"
    ):
        load_lpips(tmp_path / "nowhere.pth")


def test_a_damaged_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half of it")
    with pytest.raises(MissingWeightsError, match="is damaged, its SHA-256 does not begin with 397923af"):
        load_lpips()


def test_a_file_of_other_weights_is_refused(tmp_path: Path, backbone: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(
        MissingWeightsError, match=r"other\.pth holds no features\.0\.weight of shape \(64, 3, 3, 3\)"
    ):
        load_lpips(tmp_path / "other.pth")
    with pytest.raises(MissingWeightsError, match=r"vgg\.pth holds no heads\.0 of shape \(1, 64, 1, 1\)"):
        load_lpips(backbone, heads=backbone)
    for no_weights in (
        [torch.zeros(3)],
        torch.zeros(3),
        {"features.0.weight": "a text", 7: torch.zeros(3)},
        7,
    ):
        torch.save(no_weights, tmp_path / "other.pth")
        with pytest.raises(MissingWeightsError, match=r"other\.pth holds no features\.0\.weight of shape"):
            load_lpips(tmp_path / "other.pth")
    for damaged in (backbone.read_bytes()[:1000], b"a text"):
        (tmp_path / "other.pth").write_bytes(damaged)
        with pytest.raises(MissingWeightsError, match=r"other\.pth cannot be read as weights alone: \w+$"):
            load_lpips(tmp_path / "other.pth")
