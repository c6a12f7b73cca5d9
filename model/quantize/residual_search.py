"""Residual codes of several streams at once, as one operator: torch.compile calls it as it stands.

S streams, M vectors each, G codebooks (one, or one per depth), K codes, W channels, D depths.
"""

from functools import cache
from importlib.util import find_spec
from itertools import repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.quantize.beam import beam_codes
from dualtoken.model.quantize.nearest import CodeSearch

_FUSED_WIDTH = 64
"""Channels of a code, at most, whose tiles a GPU's shared memory holds."""


@torch.library.custom_op(
    "dualtoken::residual_codes",
    mutates_args=(),
    schema="(Tensor vectors, Tensor codes, int depth, int beam) -> Tensor",
)
def residual_codes(
    vectors: Float[Tensor, "S M W"], codes: Float[Tensor, "S G K W"], depth: int, beam: int
) -> Int[Tensor, "S M D"]:
    """Return each depth's code of what the depths before left over; with a beam, of the best sums found."""
    if is_fused(vectors, beam):
        from dualtoken.model.quantize.triton_kernel import fused_residual_codes  # noqa: PLC0415  (only where there is a GPU)

        return fused_residual_codes(vectors, codes, depth)
    return torch.stack([_residual_codes(*stream, depth, beam) for stream in zip(vectors, codes, strict=True)])


@residual_codes.register_fake
def _(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:  # noqa: ARG001
    return vectors.new_empty((*vectors.shape[:2], depth), dtype=torch.int64)


@torch.library.custom_op(
    "dualtoken::part_codes", mutates_args=(), schema="(Tensor vectors, Tensor codes) -> Tensor"
)
def part_codes(vectors: Float[Tensor, "D M V"], codes: Float[Tensor, "D K V"]) -> Int[Tensor, "D M"]:
    """Return each part's nearest code in its own codebook."""
    return torch.stack([CodeSearch(book).nearest(part) for part, book in zip(vectors, codes, strict=True)])


@part_codes.register_fake
def _(vectors: Tensor, codes: Tensor) -> Tensor:  # noqa: ARG001
    return vectors.new_empty(vectors.shape[:2], dtype=torch.int64)


def _residual_codes(
    vectors: Float[Tensor, "M W"], codes: Float[Tensor, "G K W"], depth: int, beam: int
) -> Int[Tensor, "M D"]:
    assert len(codes) in (1, depth), f"{len(codes)} codebooks for {depth} depths"
    # Of several codebooks one at a time: what is worked out for each takes memory.
    books = repeat(CodeSearch(codes[0]), depth) if len(codes) == 1 else map(CodeSearch, codes)
    if beam > 1:
        return beam_codes(vectors, books, beam, shared=len(codes) == 1)
    ids = []
    for book in books:
        ids.append(book.nearest(vectors))
        vectors = vectors - book.codes[ids[-1]]
    return torch.stack(ids, dim=1)


def is_fused(vectors: Tensor, beam: int) -> bool:
    """Tell whether the codes of such vectors are found by the fused kernel."""
    return beam == 1 and vectors.is_cuda and vectors.shape[-1] <= _FUSED_WIDTH and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
