"""The packages that decide an evaluation's numbers are recorded with it, and no others."""

from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.evaluation.deciding_packages import (
    ALWAYS,
    deciding_packages,
    other_text_reader,
)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of versions that nobody has, as an installer leaves their metadata."""
    for name, version in {"rapidocr": "3.99", "onnxruntime": "9.9", "torch_fidelity": "0.99"}.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)


def packages(metrics: list[str], content: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    protocol = EvaluationProtocol.model_validate({"metrics": metrics, **fields})
    return deciding_packages([(protocol, content or {})])


@pytest.mark.usefixtures("planted")
def test_a_reader_of_text_is_recorded_with_its_models_where_text_is_read() -> None:
    content = {"weights": {"text_reader": {"det.onnx": "d1" * 32}, "lpips": {"heads": "a" * 64}}}
    found = packages(["psnr", "text_kept"], content)
    assert found["rapidocr"] == "3.99"
    assert found["onnxruntime"] == "9.9"
    assert found["rapidocr/det.onnx"] == "d1" * 6
    assert "heads" not in str(found)
    assert packages(["psnr"]).keys() == set(ALWAYS)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("metrics", "fields", "expected"),
    [
        (["lpips"], {"lpips": {"backbone": "vgg16.pth"}}, {"torchmetrics"}),
        (["dists"], {"dists": {"backbone": "vgg16.pth"}}, {"torchmetrics"}),
        (["answer"], {}, {"transformers", "tokenizers"}),
        (["image_to_text"], {}, {"transformers", "tokenizers"}),
        (["fd"], {"features": {"kind": "torch_fidelity", "file": "inception.pth"}}, {"torch-fidelity"}),
        (
            ["fd"],
            {"features": {"kind": "timm", "file": "net.pth", "model": "resnet18", "image_size": 64}},
            set(),
        ),
    ],
)
def test_what_is_optional_is_recorded_where_a_metric_needs_it(
    metrics: list[str], fields: dict[str, Any], expected: set[str]
) -> None:
    assert packages(metrics, **fields).keys() - set(ALWAYS) == expected


def test_readers_differ_by_version_by_model_and_by_what_is_there() -> None:
    reader = {"rapidocr": "3.10", "rapidocr/det.onnx": "aa", "torch": "2.13"}
    assert other_text_reader(reader, reader | {"torch": "2.14"}) is None
    assert other_text_reader(reader, reader | {"rapidocr/det.onnx": "bb"}) == "rapidocr/det.onnx aa to bb"
    assert other_text_reader(reader, reader | {"opencv-python": "5"}) == "opencv-python none to 5"
    assert other_text_reader({"torch": "2.13"}, reader) is None
    assert other_text_reader(reader, {"torch": "2.13"}) is None
