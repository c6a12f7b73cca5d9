"""The tokenizer's two graphs, images to codes and pixel codes to images, for other runtimes: ONNX and torch.export.

B images, H and W places of the grid, D depths. Graphs take any batch size.
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

from dualtoken.model.quantize import Quantizer
from dualtoken.model.quantize.exportable import exportable
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

Format = Literal["onnx", "torch-export"]
SUFFIX = {"onnx": "onnx", "torch-export": "pt2"}
_NEEDS = ("onnx", "onnxscript")
_EXAMPLES = 2
"""Images in the example; one would be taken for a constant."""


class Graph(NamedTuple):
    """One network to export."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]


def export(tokenizer: DualTokenizer, format: Format, folder: Path) -> list[Path]:  # noqa: A002  (the command's word)
    """Write `encode` and `decode` into a folder, made if missing, and return the files' paths.

    ONNX's own format ends at 2 GB: of a larger graph, as So400m's, the weights are a second file, `encode.onnx.data`. Raises
    ValueError if a package that the format needs is missing.
    """
    if format == "onnx" and (missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]):
        raise ValueError(
            f"format=onnx needs the package {missing[0]}: pip install '.[export]' in its folder, or use torch-export"
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with _for_inference(tokenizer), _quiet():
        for graph in _graphs(tokenizer):
            path = folder / f"{graph.name}.{SUFFIX[format]}"
            weights = path.with_name(f"{path.name}.data")
            weights.unlink(missing_ok=True)  # an earlier export's
            _export_onnx(graph, path) if format == "onnx" else _export_torch(graph, path)
            paths += [path, weights] if weights.exists() else [path]
    return paths


def _graphs(tokenizer: DualTokenizer) -> tuple[Graph, Graph]:
    config, network, device = tokenizer.config, _plain(tokenizer), next(tokenizer.parameters()).device
    images = torch.zeros(_EXAMPLES, 3, config.image_size, config.image_size, device=device)
    codes = torch.zeros(
        _EXAMPLES, config.grid_size, config.grid_size, config.pixel.depth, dtype=torch.int64, device=device
    )
    return (
        Graph("encode", _Encode(network), (images,), ["images"], ["semantic", "pixel"]),
        Graph("decode", _Decode(network), (codes,), ["pixel"], ["images"]),
    )


def _export_onnx(graph: Graph, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        graph.module, graph.inputs, path, dynamo=True, verbose=False, input_names=graph.input_names,
        output_names=graph.output_names, dynamic_shapes=({0: batch},), external_data=False,
    )  # fmt: skip


def _export_torch(graph: Graph, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(graph.module, graph.inputs, dynamic_shapes=({0: batch},)), path)


@contextmanager
def _for_inference(tokenizer: DualTokenizer) -> Iterator[None]:
    """Put a tokenizer, which shares its modules with the graphs, into eval mode for a while."""
    training = tokenizer.training
    try:
        tokenizer.eval()
        yield
    finally:
        tokenizer.train(training)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own progress, and their warnings of their own insides, from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Encode(nn.Module):
    def __init__(self, tokenizer: DualTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self, images: Float[Tensor, "B 3 S S"]
    ) -> tuple[Int[Tensor, "B H W D"], Int[Tensor, "B H W D"]]:
        codes = self.tokenizer.encode(images)
        return codes.semantic, codes.pixel


class _Decode(nn.Module):
    def __init__(self, tokenizer: DualTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixel: Int[Tensor, "B H W D"]) -> Float[Tensor, "B 3 S S"]:
        return self.tokenizer.decode(pixel)


def _plain(tokenizer: DualTokenizer) -> DualTokenizer:
    """Return a tokenizer that shares the weights, with searches that a graph can hold."""
    network = copy.copy(tokenizer)
    network._modules = dict(tokenizer._modules)  # noqa: SLF001  (a shallow copy that leaves the original its quantisers)
    for name in ("quantize_pixel", "quantize_semantic"):
        quantizer = network._modules.get(name)  # noqa: SLF001  (a shared codebook is in one place only)
        if isinstance(quantizer, Quantizer):
            network._modules[name] = exportable(quantizer)  # noqa: SLF001
    return network
