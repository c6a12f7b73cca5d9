"""Exports the tokenizer as two graphs, ONNX or torch.export: images to codes, and pixel codes to images.

B images of S by S pixels, a grid of H by W tokens, D depths. Graphs take any batch size.
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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


def export_graphs(tokenizer: DualTokenizer, format: Format, folder: Path) -> list[Path]:  # noqa: A002
    """Write `encode` and `decode` into a folder, made if missing, and return the files' paths.

    ONNX's own format ends at 2 GB: the weights of a larger graph, as So400m's, are a second file,
    `encode.onnx.data`. Raises ValueError if a package that the format needs is missing.
    """
    if format == "onnx":
        _require_onnx()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with _eval_mode(tokenizer), _quiet():
        for graph in _graphs(tokenizer):
            path = folder / f"{graph.name}.{SUFFIX[format]}"
            weights = path.with_name(f"{path.name}.data")
            weights.unlink(missing_ok=True)  # an earlier export's
            if format == "onnx":
                _export_onnx(graph, path)
            else:
                _export_torch(graph, path)
            paths.append(path)
            if weights.exists():
                paths.append(weights)
    return paths


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


def _export_onnx(graph: Graph, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        graph.module,
        graph.inputs,
        path,
        dynamo=True,
        verbose=False,
        input_names=graph.input_names,
        output_names=graph.output_names,
        dynamic_shapes=({0: batch},),
        external_data=False,
    )


def _export_torch(graph: Graph, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


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
