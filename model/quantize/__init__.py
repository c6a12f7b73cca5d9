"""Quantisers: tokens to ids and back, behind one interface."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import AnyQuantizerConfig, QuantizerConfig, SplitQuantizerConfig
from dualtoken.model.quantize.base import Quantized, Quantizer
from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.nearest import nearest_codes
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.residual_search import residual_codes
from dualtoken.model.quantize.split import SplitQuantizer

__all__ = [
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "ScalarQuantizer",
    "SplitQuantizer",
    "build_quantizer",
    "encode_streams",
    "nearest_codes",
]


def build_quantizer(config: AnyQuantizerConfig) -> Quantizer:
    """Return the quantiser that a configuration asks for."""
    if isinstance(config, QuantizerConfig):
        return ResidualQuantizer(config)
    return SplitQuantizer(config) if isinstance(config, SplitQuantizerConfig) else ScalarQuantizer(config)


@torch.no_grad()
def encode_streams(streams: Sequence[tuple[Quantizer, Float[Tensor, "B N _"]]]) -> list[Int[Tensor, "B N _"]]:
    """Return the ids of each stream's tokens, as its own `encode`; residual quantisers of one shape share one launch on a GPU."""
    alike = [quantizer for quantizer, _ in streams if isinstance(quantizer, ResidualQuantizer)]
    shapes = {(each.books.shape, each.config.depth, each.config.beam) for each in alike}
    if len(alike) < len(streams) or len(shapes) > 1 or not all(tokens.is_cuda for _, tokens in streams):
        return [quantizer.encode(tokens) for quantizer, tokens in streams]
    vectors = torch.stack([tokens.float().flatten(0, 1) for _, tokens in streams])
    config = alike[0].config
    ids = residual_codes(vectors, torch.stack([each.books for each in alike]), config.depth, config.beam)
    return list(ids.unflatten(1, streams[0][1].shape[:2]))
