"""Exports the tokenizer as two graphs, ONNX or torch.export: images to codes, and pixel codes to images.

Graphs take any batch size, and each file describes itself (`graph_description`). B images of S by S pixels, a
grid of H by W tokens, D depths.
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualtoken.model.convert.graph_description import (
    EXTRA_FILE,
    METADATA_KEY,
    Origin,
    describe,
    require_own_readme,
    write_readme,
)
from dualtoken.model.quantize.base import Quantizer
from dualtoken.model.quantize.exportable import exportable
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

Format = Literal["onnx", "torch-export"]
SUFFIX = {"onnx": "onnx", "torch-export": "pt2"}
_ONNX_PACKAGES = ("onnx", "onnxscript")
_NUM_EXAMPLES = 2
"""Images in the example input; a batch of one would be taken for a constant."""


class Graph(NamedTuple):
    """One network to export."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]


def export_graphs(
    tokenizer: DualTokenizer,
    format: Format,  # noqa: A002
    folder: Path,
    origin: Origin,
) -> list[Path]:
    """Write `encode`, `decode` and README.md into a folder, made if missing, and return the files' paths.

    `origin` is what the graphs say that they were made of. ONNX's own format ends at 2 GB: the weights of a
    larger graph, as So400m's, are a second file, `encode.onnx.data`. Raises ValueError if a package that the
    format needs is missing, or the folder holds a README.md of something else.
    """
    if format == "onnx":
        _require_onnx()
    folder.mkdir(parents=True, exist_ok=True)
    require_own_readme(folder)
    paths = []
    descriptions: dict[str, dict[str, Any]] = {}
    with _eval_mode(tokenizer), _quiet():
        for graph in _graphs(tokenizer):
            path = folder / f"{graph.name}.{SUFFIX[format]}"
            weights = path.with_name(f"{path.name}.data")
            weights.unlink(missing_ok=True)  # an earlier export's
            write = _export_onnx if format == "onnx" else _export_torch
            descriptions[path.name] = write(graph, path, tokenizer, origin)
            paths.append(path)
            if weights.exists():
                paths.append(weights)
    return [*paths, write_readme(folder, descriptions)]


def _require_onnx() -> None:
    for package in _ONNX_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"format=onnx needs the package {package}: pip install '.[export]' in its folder, "
                "or use torch-export"
            )


def _graphs(tokenizer: DualTokenizer) -> tuple[Graph, Graph]:
    config = tokenizer.config
    device = next(tokenizer.parameters()).device
    images = torch.zeros(_NUM_EXAMPLES, 3, config.image_size, config.image_size, device=device)
    codes_shape = (_NUM_EXAMPLES, config.grid_size, config.grid_size, config.pixel.depth)
    codes = torch.zeros(codes_shape, dtype=torch.int64, device=device)
    network = _exportable_copy(tokenizer)
    return (
        Graph("encode", _Encode(network), (images,), ["images"], ["semantic", "pixel"]),
        Graph("decode", _Decode(network), (codes,), ["pixel"], ["images"]),
    )


def _export_onnx(graph: Graph, path: Path, tokenizer: DualTokenizer, origin: Origin) -> dict[str, Any]:
    """Write a graph, and return its description."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        graph.module,
        graph.inputs,
        dynamo=True,
        verbose=False,
        input_names=graph.input_names,
        output_names=graph.output_names,
        dynamic_shapes=({0: batch},),
    )
    assert program is not None, "the exporter by dynamo returns its program"
    runtime = {"format": "onnx", "opset": program.model.opset_imports[""], "torch": str(torch.__version__)}
    description = describe(tokenizer, graph.name, origin, runtime)
    program.model.metadata_props[METADATA_KEY] = json.dumps(description)
    program.save(path, external_data=False)
    return description


def _export_torch(graph: Graph, path: Path, tokenizer: DualTokenizer, origin: Origin) -> dict[str, Any]:
    """Write a graph, and return its description."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=({0: batch},))
    runtime = {"format": "torch-export", "torch": str(torch.__version__)}
    description = describe(tokenizer, graph.name, origin, runtime)
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(description)})
    return description


@contextmanager
def _eval_mode(tokenizer: DualTokenizer) -> Iterator[None]:
    """Put a tokenizer, which shares its modules with the graphs, into eval mode for a block."""
    training = tokenizer.training
    try:
        tokenizer.eval()
        yield
    finally:
        tokenizer.train(training)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide from the user the exporters' own progress and their warnings about their own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Encode(nn.Module):
    """Graph of `DualTokenizer.encode`, with plain outputs."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self, images: Float[Tensor, "B 3 S S"]
    ) -> tuple[Int[Tensor, "B H W D"], Int[Tensor, "B H W D"]]:
        codes = self.tokenizer.encode(images)
        return codes.semantic, codes.pixel


class _Decode(nn.Module):
    """Graph of `DualTokenizer.decode`."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixel: Int[Tensor, "B H W D"]) -> Float[Tensor, "B 3 S S"]:
        return self.tokenizer.decode(pixel)


def _exportable_copy(tokenizer: DualTokenizer) -> DualTokenizer:
    """Return a tokenizer that shares the weights, but has searches that a graph can hold.

    nn.Module has no such copy, so this reaches past it: the copy is shallow, and its own dictionary of
    modules leaves the original its quantisers.
    """
    network = copy.copy(tokenizer)
    modules = dict(tokenizer._modules)  # noqa: SLF001
    for name in ("quantize_pixel", "quantize_semantic"):
        quantizer = modules.get(name)  # None for a codebook shared with the other stream
        if isinstance(quantizer, Quantizer):
            modules[name] = exportable(quantizer)
    network._modules = modules  # noqa: SLF001
    return network
