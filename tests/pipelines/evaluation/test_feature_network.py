"""`fd` is the Fréchet distance of what plain code gets from the same network; mistakes are told early."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.evaluation import (
    EvaluationConfig,
    EvaluationProtocol,
    TimmFeatures,
    TorchFidelityFeatures,
)
from dualtoken.pipelines.core.stage import UnitOutcome, Work
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.closeness import through_jpeg
from dualtoken.pipelines.evaluation.evaluations import read_scores
from dualtoken.pipelines.evaluation.feature_network import FeatureNetwork, feature_width, resized
from dualtoken.pipelines.evaluation.protocols import protocol_content, protocol_hash
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace
from dualtoken.pipelines.evaluation.sets import read_unit
from dualtoken.pipelines.evaluation.summary import SCORES
from dualtoken.pipelines.inference.networks import TokenizerRunner
from tests.helpers.evaluated import Backwards, canary, config_of, evaluated, write_folder

with vision_imports():
    from timm.models import create_model

NUM = 72
D = 64
BATCH = 8
SIZE = 32
HALF = (0.5, 0.5, 0.5)
CPU = torch.device("cpu")
PROTOCOLS: dict[str, dict[str, object]] = {
    "resized": {"antialias": False, "interpolation": "bilinear", "pool": "cls"},
    "clean": {},
    "clean-fid": {"clamp": True},
    "jpeg95": {"antialias": False},
}
OTHERS: dict[str, dict[str, object]] = {"jpeg95": {"jpeg_quality": 95, "cast": "truncate"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return canary(tmp_path_factory.mktemp("canary"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "folder", NUM)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(network("test_vit").state_dict(), file)
    return file


class RunsNothing:
    """Fails where a unit is to be run."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        raise AssertionError(f"{work[0].job.label} was run")


def network(name: str) -> Any:
    torch.manual_seed(0)
    return create_model(name, pretrained=False).eval()


def features_of(file: Path, **others: object) -> dict[str, object]:
    return {"kind": "timm", "model": "test_vit", "file": str(file), "image_size": SIZE} | others


def config_for(root: Path, images: Path, features: object, **protocol: object) -> EvaluationConfig:
    sets = {"colours": {"kind": "folder", "folder": str(images)}}
    values = {"metrics": ["fd"], "batch_size": BATCH, "features": features} | protocol
    return config_of(root, sets, {"p": values}, unit_rows=28)


def plain_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance in float64: singular values of A B' are the roots of those of S_a S_b."""
    centred_a = a - a.mean(axis=0)
    centred_b = b - b.mean(axis=0)
    traces = ((centred_a**2).sum() + (centred_b**2).sum()) / (len(a) - 1)
    roots = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum() / (len(a) - 1)
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + traces - 2 * roots)


def plain_features(vit: Any, levels: Tensor, settings: dict[str, object]) -> Tensor:
    """Return the features of a batch, by timm's own calls."""
    mode = str(settings.get("interpolation", "bicubic"))
    antialias = bool(settings.get("antialias", True))
    seen = F.interpolate(levels.float() / 255, size=(SIZE, SIZE), mode=mode, antialias=antialias)
    if settings.get("clamp"):
        seen = seen.clamp(0, 1)
    seen = (seen - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        tokens = vit.forward_features(seen)
    return tokens[:, 0] if settings.get("pool") == "cls" else tokens[:, 1:].mean(dim=1)


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.mark.parametrize("size", [40, 96])
@pytest.mark.filterwarnings(
    "ignore:'mode' parameter is deprecated:DeprecationWarning"
)  # Pillow's, of clean-fid
def test_images_are_resized_as_clean_fid_resizes_them(size: int) -> None:
    resizing = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    images = noise(3)
    resize = resizing.make_resizer("PIL", quantize_after=False, filter="bicubic", output_size=(size, size))
    expected = np.stack([resize(image.permute(1, 2, 0).numpy()) for image in images])
    settings = TimmFeatures(kind="timm", model="test_vit", image_size=size, clamp=True, file="none")
    found = 255 * resized(images, settings).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.01)


def same(levels: Tensor) -> Tensor:
    return levels


def through_95(levels: Tensor) -> Tensor:
    return through_jpeg(levels, 95)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_distance_is_that_of_a_plain_loop(
    name: str, model: ModelPlace, images: Path, weights: Path, tmp_path: Path
) -> None:
    settings = PROTOCOLS[name]
    config = config_for(tmp_path, images, features_of(weights, **settings), **OTHERS.get(name, {}))
    (result,) = evaluated(config, model).summary.results
    tokenizer = TokenizerRunner(Path(model.folder.root), CPU)
    vit = network("test_vit")
    vit.set_input_size(img_size=SIZE)
    prepare: Callable[[Tensor], Tensor] = through_95 if name == "jpeg95" else same
    decode = tokenizer.decode_truncated if name == "jpeg95" else tokenizer.decode
    originals: list[Tensor] = []
    reconstructions: list[Tensor] = []
    set_folder = next((tmp_path / "sets/colours").iterdir())
    for unit in range(3):
        for row in read_unit(Store(str(set_folder)), f"{unit:05d}", tmp_path).to_pylist():
            picture = Image.open(images / row["name"]).convert("RGB")
            # In a batch of the protocol's size, which is what rounding depends on.
            levels = tokenizer.levels([picture] * BATCH)
            again = decode(tokenizer.encode_levels(levels).pixel)
            originals.append(plain_features(vit, prepare(levels), settings)[0])
            reconstructions.append(plain_features(vit, prepare(again), settings)[0])
    assert len(originals) == NUM
    expected = plain_distance(
        torch.stack(reconstructions).double().numpy(), torch.stack(originals).double().numpy()
    )
    found = result.metrics["fd"]
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.n == NUM
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.direction, found.margin, found.per_sample) == ("lower", 0.05, "fd_influence")
    influences = read_scores(result)["fd_influence"].to_numpy()
    assert np.abs(influences.mean()) < 1e-9 * np.abs(influences).max()


def test_bits_depend_on_no_order_of_units(
    model: ModelPlace, images: Path, weights: Path, tmp_path: Path
) -> None:
    stored: list[bytes] = []
    for name, executor in (("a", None), ("b", Backwards())):
        config = config_for(tmp_path / name, images, features_of(weights))
        (result,) = evaluated(config, model, executor).summary.results
        stored.append((Path(result.scores) / SCORES).read_bytes() + result.metrics["fd"].value.hex().encode())
    assert stored[0] == stored[1]


def test_an_image_does_not_depend_on_those_beside_it_nor_on_padding(weights: Path) -> None:
    open_network = FeatureNetwork(TimmFeatures.model_validate(features_of(weights)), CPU)
    levels = noise(BATCH)
    states = open_network.states(levels, levels.flip(0), 5)
    assert [tuple(value.shape) for value in states.values()] == [(5, D)] * 2
    assert {value.dtype for value in states.values()} == {torch.float32}
    assert torch.equal(
        states["rows_features_originals"][0], open_network(levels[:1].repeat(BATCH, 1, 1, 1))[0]
    )
    assert torch.equal(states["rows_features_reconstructions"], open_network(levels.flip(0))[:5])


def test_a_network_of_convolutions_is_pooled_over_positions(tmp_path: Path) -> None:
    net = network("test_resnet")
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    values = features_of(tmp_path / "resnet.pth", model="test_resnet", image_size=64, mean=HALF, std=HALF)
    levels = noise(2)
    with torch.no_grad():
        expected = net.forward_features(levels.float() / 127.5 - 1).mean(dim=(2, 3))
    found = FeatureNetwork(TimmFeatures.model_validate(values), CPU)(levels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def hash_of(protocol: EvaluationProtocol) -> str:
    return protocol_hash(protocol_content(protocol, None))


def test_what_decides_the_distance_is_in_the_protocols_hash(weights: Path, tmp_path: Path) -> None:
    def of(file: Path, **others: object) -> EvaluationProtocol:
        return EvaluationProtocol.model_validate({"metrics": ["fd"], "features": features_of(file, **others)})

    first = of(weights)
    content = protocol_content(first, None)
    assert content["weights"] == {"features": {"file": digest(weights).sha256}}
    elsewhere = tmp_path / "same.safetensors"
    elsewhere.write_bytes(weights.read_bytes())
    assert hash_of(of(elsewhere)) == hash_of(first), "the content counts, not the place"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    elsewhere.write_bytes(changed)
    others = [
        of(elsewhere),
        of(weights, antialias=False),
        of(weights, pool="cls"),
        of(weights, image_size=64),
    ]
    assert len({hash_of(protocol) for protocol in (first, *others)}) == 5
    assert "features" not in protocol_content(EvaluationProtocol(metrics=("psnr",)), None), (
        "as before it was there"
    )


def test_mistakes_are_told_in_one_line_before_anything_runs(
    model: ModelPlace, images: Path, weights: Path, tmp_path: Path
) -> None:
    def error_of(images: Path = images, **features: object) -> str:
        config = config_for(tmp_path / "root", images, features_of(weights) | features)
        with pytest.raises(UserError) as error:
            evaluated(config, model, RunsNothing())
        assert "\n" not in str(error.value)
        return str(error.value)

    sha256 = digest(weights).sha256
    assert f"features.file={weights} has the SHA-256 {sha256}, not {'0' * 64}" in error_of(sha256="0" * 64)
    assert f"features.file={tmp_path}/gone is no file: put it there" in error_of(file=str(tmp_path / "gone"))
    assert f"features.file={tmp_path} is no file" in error_of(file=str(tmp_path))
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth cannot be read as weights alone" in error_of(file=str(tmp_path / "text.pth"))
    assert "model=test_vitt is unknown to timm: did you mean test_vit" in error_of(model="test_vitt")
    assert "features.model=test_vit.nope: Invalid pretrained tag (nope)" in error_of(model="test_vit.nope")
    assert "vit.safetensors has no conv1.0.weight, unlike test_resnet" in error_of(model="test_resnet")
    assert "has cls_token of shape (1, 1, 64), and vit_tiny_patch16_224 (1, 1, 192)" in error_of(
        model="vit_tiny_patch16_224"
    )
    state = network("test_vit").state_dict()
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    assert "has, beside its weights, more, unlike test_vit" in error_of(
        file=str(tmp_path / "more.safetensors")
    )
    save_file(state | {"cls_token": torch.full((1, 1, D), torch.nan)}, tmp_path / "nan.safetensors")
    assert "nan.safetensors gives no finite numbers" in error_of(file=str(tmp_path / "nan.safetensors"))
    assert "features.image_size=33: test_vit takes no such images" in error_of(image_size=33)
    few = write_folder(tmp_path / "few", D)
    assert "fd needs more images than the 64 channels of its network, and the set colours has 64" in error_of(
        few
    )


def test_a_network_without_class_token_has_none_to_give(tmp_path: Path) -> None:
    torch.save(network("test_resnet").state_dict(), tmp_path / "resnet.pth")
    values = features_of(tmp_path / "resnet.pth", model="test_resnet", pool="cls")
    with pytest.raises(UserError, match=r"features.pool=cls: test_resnet has no class token: set it to avg"):
        feature_width(TimmFeatures.model_validate(values))


def test_images_that_give_no_picture_leave_too_few(model: ModelPlace, weights: Path, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", D + 1)
    (images / "002.png").write_bytes((images / "002.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"sets.colours: fd: 64 samples of 64 channels: .*give more") as error:
        evaluated(config_for(tmp_path / "root", images, features_of(weights)), model)
    assert "\n" not in str(error.value)


def test_fd_needs_a_network_and_a_name_is_no_address() -> None:
    with pytest.raises(ValidationError, match="fd needs a feature network: set features, or leave it out"):
        EvaluationProtocol(metrics=("fd",))
    with pytest.raises(ValidationError, match="String should match pattern"):
        TimmFeatures.model_validate(features_of(Path("x"), model="hf-hub:someone/model"))


class _Opens:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.file, "w"))


def test_a_file_of_pickles_runs_no_code(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    torch.save({"cls_token": _Opens(tmp_path / "sentinel")}, tmp_path / "evil.pth")
    for features in (
        features_of(tmp_path / "evil.pth"),
        {"kind": "torch_fidelity", "file": str(tmp_path / "evil.pth")},
    ):
        with pytest.raises(UserError, match="cannot be read as weights alone"):
            evaluated(config_for(tmp_path / "root", images, features), model, RunsNothing())
    assert not (tmp_path / "sentinel").exists()


def fidelity() -> Any:
    with vision_imports():
        return pytest.importorskip(
            "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
        )


def test_inception_is_that_of_torch_fidelity(tmp_path: Path) -> None:
    inception = fidelity().FeatureExtractorInceptionV3

    class Untrained(inception):
        def load_state_dict(self, *_: object) -> None:
            """Keep the weights that were drawn."""

    torch.save({}, tmp_path / "none.pth")
    torch.manual_seed(0)
    theirs = Untrained("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    torch.save(theirs.state_dict(), tmp_path / "inception.pth")
    features = TorchFidelityFeatures(kind="torch_fidelity", file=str(tmp_path / "inception.pth"))
    levels = noise(2)
    assert torch.equal(FeatureNetwork(features, CPU)(levels), theirs(levels)[0])
    assert feature_width(features) == 2048


def test_what_is_no_inception_is_refused_in_one_line(weights: Path) -> None:
    fidelity()
    features = TorchFidelityFeatures(kind="torch_fidelity", file=str(weights))
    with pytest.raises(UserError, match=r"features.file=.* holds no Inception as torch-fidelity saves it"):
        FeatureNetwork(features, CPU)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_its_package_is_refused_in_one_line(weights: Path) -> None:
    features = TorchFidelityFeatures(kind="torch_fidelity", file=str(weights))
    with pytest.raises(UserError, match="torch_fidelity needs it: pip install torch-fidelity"):
        FeatureNetwork(features, CPU)
