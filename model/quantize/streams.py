"""Encodes several streams of tokens, each with its own quantiser, in one kernel launch where possible.

B images, N tokens, W channels, D depths.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.quantize.base import Quantizer
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.residual_search import residual_codes


@torch.no_grad()
def encode_streams(streams: Sequence[tuple[Quantizer, Float[Tensor, "B N _"]]]) -> list[Int[Tensor, "B N _"]]:
    """Return the ids of each stream's tokens, the same as its quantiser's `encode` gives.

    On a GPU, residual quantisers of one shape are searched together, in one launch.
    """
    quantizers = _same_shape_residual(streams)
    on_gpu = all(tokens.is_cuda for _, tokens in streams)
    if quantizers is None or not on_gpu:
        return [quantizer.encode(tokens) for quantizer, tokens in streams]
    config = quantizers[0].config
    vectors = torch.stack([tokens.float().flatten(0, 1) for _, tokens in streams])
    codebooks = torch.stack([quantizer.codebooks for quantizer in quantizers])
    ids = residual_codes(vectors, codebooks, config.depth, config.beam)
    num_images, num_tokens = streams[0][1].shape[:2]
    return list(ids.unflatten(1, (num_images, num_tokens)))


def _same_shape_residual(streams: Sequence[tuple[Quantizer, Tensor]]) -> list[ResidualQuantizer] | None:
    """Return the streams' quantisers if all are residual ones that one search can serve, else None."""
    quantizers = []
    shapes = set()
    for quantizer, _ in streams:
        if not isinstance(quantizer, ResidualQuantizer):
            return None
        quantizers.append(quantizer)
        shapes.add((quantizer.codebooks.shape, quantizer.config.depth, quantizer.config.beam))
    if len(shapes) != 1:
        return None
    return quantizers
