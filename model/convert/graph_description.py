"""What exported graphs say of themselves: their inputs and outputs, and the tokenizer that they were made of.

The same JSON stands in ONNX's metadata, under `dualtoken`, and in torch.export's extra file `dualtoken.json`;
the README.md beside the graphs says it in words.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.model.hub.saved_model import fingerprint
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

METADATA_KEY = "dualtoken"
"""Name of the description in an ONNX file's metadata."""
EXTRA_FILE = "dualtoken.json"
"""Name of the description in a torch.export archive."""
README = "README.md"
FORMAT = "dualtoken-graph"
FORMAT_VERSION = 1
CODE_ORDER = "position-major, depth-minor"
"""Order of codes, in the words of a token dataset's metadata."""
_TITLE = "# DualToken tokenizer as graphs"
_INPUT_LEVELS = (
    "channels red, green, blue; rows from the top, columns from the left; of each channel "
    "(level / 255 - mean) / std"
)
_OUTPUT_LEVELS = f"{_INPUT_LEVELS}; not clamped: level = round(255 * (value * std + mean)), kept in 0 to 255"
_CODES = "axes: image, row of the grid from the top, column from the left, depth"


class Origin(NamedTuple):
    """Saved model that graphs are made of."""

    fingerprint: str
    """SHA-256 of config.json followed by model.safetensors."""
    weights_sha256: str
    """SHA-256 of model.safetensors, by which token datasets know their tokenizer too."""
    package_version: str
    """Version of the package that exports."""

    @classmethod
    def of(cls, folder: Path, package_version: str) -> "Origin":
        """Return the origin of graphs of a saved model's folder."""
        with (folder / WEIGHTS).open("rb") as file:
            weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(fingerprint(folder), weights_sha256, package_version)


def describe(
    tokenizer: DualTokenizer, graph: str, origin: Origin, runtime: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the description of the graph `encode` or `decode`, as values of JSON.

    `runtime` is the format and what it was written with, such as ONNX's opset.
    """
    config = tokenizer.config
    transform = tokenizer.transform
    num_codes = {"semantic": config.semantic.num_codes, "pixel": config.pixel.num_codes}
    semantic = _codes(tokenizer, "semantic", num_codes["semantic"])
    pixel = _codes(tokenizer, "pixel", num_codes["pixel"])
    if graph == "encode":
        inputs = [_images(tokenizer, _INPUT_LEVELS)]
        outputs = [semantic, pixel]
    else:
        inputs = [pixel]
        outputs = [_images(tokenizer, _OUTPUT_LEVELS)]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "graph": graph,
        "package_version": origin.package_version,
        "runtime": dict(runtime),
        "tokenizer": {"fingerprint": origin.fingerprint, "sha256": origin.weights_sha256},
        "image_size": config.image_size,
        "transform": transform.model_dump(mode="json"),
        "preprocessing": str(transform),
        "grid": [config.grid_size, config.grid_size],
        "depth": config.pixel.depth,
        "codes": num_codes,
        "order": CODE_ORDER,
        "inputs": inputs,
        "outputs": outputs,
    }


def _images(tokenizer: DualTokenizer, values: str) -> dict[str, Any]:
    size = tokenizer.config.image_size
    return {
        "name": "images",
        "shape": ["batch", 3, size, size],
        "axes": "batch, channel, row, column",
        "type": "float32",
        "range": list(tokenizer.transform.value_range),
        "values": values,
    }


def _codes(tokenizer: DualTokenizer, stream: str, num_codes: int) -> dict[str, Any]:
    config = tokenizer.config
    return {
        "name": stream,
        "shape": ["batch", config.grid_size, config.grid_size, config.pixel.depth],
        "axes": "batch, row, column, depth",
        "type": "int64",
        "range": [0, num_codes - 1],
        "values": _CODES,
    }


def require_own_readme(folder: Path) -> None:
    """Raise ValueError where a folder's README.md, such as a saved model's card, is no earlier export's."""
    readme = folder / README
    if readme.exists() and not readme.read_bytes().startswith(_TITLE.encode()):
        raise ValueError(f"{folder} holds the {README} of something else: export into another folder")


def write_readme(folder: Path, descriptions: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write in words what graphs say of themselves, by their file's name, and return the file."""
    common = next(iter(descriptions.values()))
    lines = [_TITLE, ""]
    for name, description in descriptions.items():
        lines += _tensors_table(name, description)
    lines += _facts(common)
    readme = folder / README
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return readme


def _tensors_table(name: str, description: Mapping[str, Any]) -> list[str]:
    rows = [
        f"## `{name}`",
        "",
        "| | name | shape | axes | type | range | values |",
        "|---|---|---|---|---|---|---|",
    ]
    for role in ("inputs", "outputs"):
        rows += [_tensor_row(role.removesuffix("s"), tensor) for tensor in description[role]]
    return [*rows, ""]


def _tensor_row(role: str, tensor: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, tensor["shape"]))
    low, high = tensor["range"]
    return (
        f"| {role} | `{tensor['name']}` | {shape} | {tensor['axes']} | {tensor['type']} "
        f"| {low:.6g} to {high:.6g} | {tensor['values']} |"
    )


def _facts(common: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines on what both graphs share."""
    size = common["image_size"]
    rows, columns = common["grid"]
    codes = ", ".join(f"{stream} {number:,}" for stream, number in common["codes"].items())
    tokenizer = common["tokenizer"]
    runtime = ", ".join(f"{name} {value}" for name, value in common["runtime"].items())
    return [
        "## Both",
        "",
        "* The batch may be of any size.",
        f"* Images: {size} x {size} pixels; {common['preprocessing']}.",
        f"* Transform, as `config.json` saves it: `{json.dumps(common['transform'])}`.",
        f"* Codes of an image: {rows} x {columns} x {common['depth']} a stream, {common['order']}.",
        f"* Codebooks: {codes} codes.",
        f"* Fingerprint, the SHA-256 of `config.json` and `model.safetensors`: `{tokenizer['fingerprint']}`.",
        f"* SHA-256 of `model.safetensors`: `{tokenizer['sha256']}`.",
        f"* Written by dualtoken {common['package_version']}; {runtime}.",
        "",
        "Each file holds all of this as JSON:",
        f"ONNX in its metadata, under `{METADATA_KEY}`; torch.export in the extra file `{EXTRA_FILE}`.",
    ]
