"""Searches of several streams or parts at once, as operators: torch.compile calls each as it stands.

S streams, M vectors each, G codebooks (one, or one per depth), K codes, W channels, V channels of a part, D
depths.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.quantize.beam import beam_search
from dualtoken.model.quantize.nearest import CodebookIndex

_FUSED_WIDTH = 64
"""Largest number of channels of a code whose tiles a GPU's shared memory holds."""
_LONGEST_REASON = 200
"""Letters of a compiler's message that a warning shows."""


@torch.library.custom_op(
    "dualtoken::residual_codes",
    mutates_args=(),
    schema="(Tensor vectors, Tensor codes, int depth, int beam) -> Tensor",
)
def residual_codes(
    vectors: Float[Tensor, "S M W"], codes: Float[Tensor, "S G K W"], depth: int, beam: int
) -> Int[Tensor, "S M D"]:
    """Return each depth's code nearest to the residual so far; with a beam, the codes of the best sum."""
    if is_fused(vectors, beam):
        from dualtoken.model.quantize.triton_kernel import fused_residual_codes  # noqa: PLC0415  (GPUs only)

        return fused_residual_codes(vectors, codes, depth)
    ids = []
    for stream_vectors, stream_codes in zip(vectors, codes, strict=True):
        ids.append(_stream_codes(stream_vectors, stream_codes, depth, beam))
    return torch.stack(ids)


@residual_codes.register_fake
def _(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:  # noqa: ARG001
    return vectors.new_empty((*vectors.shape[:2], depth), dtype=torch.int64)


@torch.library.custom_op(
    "dualtoken::part_codes", mutates_args=(), schema="(Tensor vectors, Tensor codes) -> Tensor"
)
def part_codes(vectors: Float[Tensor, "D M V"], codes: Float[Tensor, "D K V"]) -> Int[Tensor, "D M"]:
    """Return each part's nearest code in its own codebook."""
    ids = []
    for part_vectors, codebook in zip(vectors, codes, strict=True):
        ids.append(CodebookIndex(codebook).nearest(part_vectors))
    return torch.stack(ids)


@part_codes.register_fake
def _(vectors: Tensor, codes: Tensor) -> Tensor:  # noqa: ARG001
    return vectors.new_empty(vectors.shape[:2], dtype=torch.int64)


def _stream_codes(
    vectors: Float[Tensor, "M W"], codes: Float[Tensor, "G K W"], depth: int, beam: int
) -> Int[Tensor, "M D"]:
    """Return one stream's codes by the search in PyTorch."""
    assert len(codes) in (1, depth), f"{len(codes)} codebooks for {depth} depths"
    indexes = _indexes(codes, depth)
    if beam > 1:
        return beam_search(vectors, indexes, beam, shared=len(codes) == 1)
    ids = []
    for index in indexes:
        nearest = index.nearest(vectors)
        ids.append(nearest)
        vectors = vectors - index.codes[nearest]
    return torch.stack(ids, dim=1)


def _indexes(codes: Float[Tensor, "G K W"], depth: int) -> Iterator[CodebookIndex]:
    """Yield each depth's index; of several codebooks one at a time, since each index takes memory."""
    if len(codes) == 1:
        return repeat(CodebookIndex(codes[0]), depth)
    return map(CodebookIndex, codes)


def is_fused(vectors: Tensor, beam: int) -> bool:
    """Tell whether the fused Triton kernel finds the codes of such vectors."""
    return beam == 1 and vectors.is_cuda and vectors.shape[-1] <= _FUSED_WIDTH and _has_kernel(vectors.device)


@cache
def _has_kernel(device: torch.device) -> bool:
    """Tell whether Triton is there and can build the kernel: it needs a C compiler and Python's headers."""
    if find_spec("triton") is None:
        return False
    from dualtoken.model.quantize.triton_kernel import fused_residual_codes  # noqa: PLC0415  (GPUs only)

    return runs_on(fused_residual_codes, device)


def runs_on(kernel: Callable[[Tensor, Tensor, int], Tensor], device: torch.device) -> bool:
    """Try a kernel of `residual_codes` on a device, on a few vectors; where it fails, warn why, once.

    An error for want of memory is raised: it may pass, and says nothing of the kernel.
    """
    vectors = torch.zeros((1, 16, 16), device=device)
    codes = torch.ones((1, 1, 16, 16), device=device)
    try:
        kernel(vectors, codes, 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (of a compiler, a driver or Triton, each of its own type)
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        warnings.warn(
            f"the fused code search does not build here ({reason}): install gcc and python3-dev; "
            "codes are the same without it, and slower",
            stacklevel=2,
        )
        return False
    return True
