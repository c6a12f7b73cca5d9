"""Exported graphs, read back with their own libraries, say what they take, give and were made of."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from dualtoken.jobs.version import package_version
from dualtoken.model.convert import Origin, export_graphs
from dualtoken.model.convert.graph_description import describe, require_own_readme, write_readme
from dualtoken.model.hub.saved_model import fingerprint
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.transform import Transform
from tests.helpers.command_line import run_dualtoken
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

CONFIG = tiny_tokenizer_config()
TRANSFORM = Transform(
    image_size=CONFIG.image_size,
    fit="squash",
    interpolation="lanczos",
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
)
CODES_SHAPE = ["batch", CONFIG.grid_size, CONFIG.grid_size, CONFIG.pixel.depth]
IMAGES_SHAPE = ["batch", 3, CONFIG.image_size, CONFIG.image_size]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose transform is not the default one."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = DualTokenizer(CONFIG)
    tokenizer.transform = TRANSFORM
    tokenizer.save_pretrained(folder)
    return folder


def export(model: Path, out: Path, kind: str) -> None:
    """Export in a process of its own: beartype may check shapes in this one, which cannot be exported."""
    arguments = ("export", model, "--format", kind, "--out", out)
    ended = run_dualtoken(*arguments, timeout_seconds=300, environment={"OMP_NUM_THREADS": "1"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{out}/README.md: " in ended.stdout


def shapes(tensors: list[dict[str, Any]]) -> dict[str, list[int | str]]:
    return {tensor["name"]: tensor["shape"] for tensor in tensors}


def require_facts(description: dict[str, Any], model: Path) -> None:
    """Compare what both graphs say with the saved model."""
    saved = json.loads((model / "config.json").read_text())
    assert description["transform"] == saved["transform"]
    assert description["image_size"] == CONFIG.image_size
    assert description["preprocessing"] == str(TRANSFORM)
    assert description["tokenizer"]["fingerprint"] == fingerprint(model)
    assert description["codes"] == {"semantic": CONFIG.semantic.num_codes, "pixel": CONFIG.pixel.num_codes}
    assert description["order"] == "position-major, depth-minor"
    assert description["package_version"] == package_version()
    codes = dict.fromkeys(("semantic", "pixel"), CODES_SHAPE)
    if description["graph"] == "encode":
        assert shapes(description["inputs"]) == {"images": IMAGES_SHAPE}
        assert shapes(description["outputs"]) == codes
        assert description["inputs"][0]["range"] == list(TRANSFORM.value_range)
        assert "red, green, blue" in description["inputs"][0]["values"]
    else:
        assert shapes(description["inputs"]) == {"pixel": CODES_SHAPE}
        assert shapes(description["outputs"]) == {"images": IMAGES_SHAPE}
        assert description["inputs"][0]["range"] == [0, CONFIG.pixel.num_codes - 1]


def require_words(readme: Path, description: dict[str, Any]) -> None:
    """Compare the page beside graphs with what they say."""
    text = readme.read_text()
    for fact in (
        str(TRANSFORM),
        json.dumps(description["transform"]),
        description["tokenizer"]["fingerprint"],
        description["order"],
        " x ".join(map(str, CODES_SHAPE)),
        f"dualtoken {description['package_version']}",
    ):
        assert fact in text, fact


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_a_description_agrees_with_the_saved_model(model: Path, tmp_path: Path, graph: str) -> None:
    tokenizer = DualTokenizer.from_pretrained(model)
    origin = Origin.of(model, package_version())
    description = describe(tokenizer, graph, origin, {"format": "onnx", "opset": 20})
    require_facts(description, model)
    weights = (model / "model.safetensors").read_bytes()
    assert description["tokenizer"]["sha256"] == hashlib.sha256(weights).hexdigest()
    require_words(write_readme(tmp_path, {f"{graph}.onnx": description}), description)


def onnx_shape(tensor: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]


@pytest.mark.slow
def test_onnx_metadata_agree_with_the_graph_and_the_saved_model(model: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install '.[export]'")
    export(model, tmp_path, "onnx")
    for name in ("encode", "decode"):
        file = tmp_path / f"{name}.onnx"
        graph = onnx.load(file)
        [metadata] = [entry.value for entry in graph.metadata_props if entry.key == "dualtoken"]
        session = onnxruntime.InferenceSession(str(file))
        assert session.get_modelmeta().custom_metadata_map["dualtoken"] == metadata
        description = json.loads(metadata)
        require_facts(description, model)
        require_words(tmp_path / "README.md", description)
        assert description["runtime"]["opset"] == graph.opset_import[0].version
        for said, found, typed in (
            (description["inputs"], graph.graph.input, session.get_inputs()),
            (description["outputs"], graph.graph.output, session.get_outputs()),
        ):
            assert shapes(said) == {tensor.name: onnx_shape(tensor) for tensor in found}
            types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
            assert [types[tensor["type"]] for tensor in said] == [tensor.type for tensor in typed]


@pytest.mark.slow
def test_torch_archives_hold_the_same_description(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path, "torch-export")
    for name in ("encode", "decode"):
        extra_files = {"dualtoken.json": ""}
        torch.export.load(tmp_path / f"{name}.pt2", extra_files=extra_files)
        description = json.loads(extra_files["dualtoken.json"])
        assert description["runtime"] == {"format": "torch-export", "torch": torch.__version__}
        require_facts(description, model)
        require_words(tmp_path / "README.md", description)


def test_the_card_of_a_saved_model_is_not_replaced(model: Path) -> None:
    card = (model / "README.md").read_bytes()
    tokenizer = DualTokenizer.from_pretrained(model)
    with pytest.raises(
        ValueError, match=r"holds the README\.md of something else: export into another folder"
    ):
        export_graphs(tokenizer, "torch-export", model, Origin.of(model, "1.2.3"))
    assert (model / "README.md").read_bytes() == card
    assert not (model / "encode.pt2").exists()


def test_a_page_of_an_earlier_export_is_replaced(model: Path, tmp_path: Path) -> None:
    tokenizer = DualTokenizer.from_pretrained(model)
    for version in ("1.2.3", "1.2.4"):
        description = describe(
            tokenizer, "encode", Origin.of(model, version), {"format": "onnx", "opset": 20}
        )
        require_own_readme(tmp_path)
        write_readme(tmp_path, {"encode.onnx": description})
    text = (tmp_path / "README.md").read_text()
    assert "Written by dualtoken 1.2.4; format onnx, opset 20." in text
