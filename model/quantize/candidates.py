"""Filter step of the nearest-code search: candidates by matrix products and a proven bound of their error.

R vectors, K codes, W channels, B blocks of L codes, N blocks that hold a candidate, P pairs of a vector and a
code.

The product of a vector v and a code c is v·c - |c|²/2. The nearest code has the largest product, but for
rounding, and rounding depends on the batch, the chunk and the threads. So products only name candidates:
every code that rounding could have kept from being the best. `nearest.py` is the refinement step: it decides
among them by exact distances.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_PAIRS = 2**18
"""Candidates listed at once, where nearly all codes are equally near."""
_BLOCK = 64
"""Codes per block. Maxima of blocks are taken first, and candidates sought only in blocks that hold one."""
_SUBBLOCK = 8
"""Codes per sub-block. Its maximum stands for its codes where several nearest codes are asked for."""


class CandidatePairs(NamedTuple):
    """Pairs of a vector and a code that may be among its nearest; all pairs of a vector stand together."""

    rows: Int[Tensor, " P"]  # index of the vector
    ids: Int[Tensor, " P"]  # index of the code


class CandidateBlocks(NamedTuple):
    """Products of some vectors with all codes, in blocks, and the blocks that hold candidates."""

    products: Float[Tensor, "R B L"]  # -inf for the codes that pad the last block
    thresholds: Float[Tensor, "R B"]  # codes with a smaller product are no candidates
    occupied: Int[
        Tensor, "N 2"
    ]  # row and block of each block with a candidate, ascending; one or more per row

    def ambiguous_rows(self, max_blocks: int) -> Bool[Tensor, " R"] | None:
        """Tell which rows have candidates in more than `max_blocks` blocks; None if no row has."""
        num_rows = len(self.products)
        # Each row has a block at least, so no row has more than 1 + len(occupied) - num_rows.
        if len(self.occupied) - num_rows < max_blocks:
            return None
        blocks_per_row = torch.bincount(self.occupied[:, 0], minlength=num_rows)
        ambiguous = blocks_per_row > max_blocks
        if not ambiguous.any():
            return None
        return ambiguous

    def without(self, rows: Bool[Tensor, " R"]) -> "CandidateBlocks":
        """Leave out the candidates of some rows."""
        excluded = rows[self.occupied[:, 0]]
        return self._replace(occupied=self.occupied[~excluded])

    def pairs(self) -> Iterator[CandidatePairs]:
        """List the candidates, about `MAX_PAIRS` at once, rows and codes ascending."""
        if len(self.occupied) * _BLOCK <= MAX_PAIRS:
            yield self._pairs_of(self.occupied)
            return
        # Cut between rows, so that all candidates of a row come at once.
        rows = self.occupied[:, 0].contiguous()
        rows_per_chunk = max(1, MAX_PAIRS // (self.products.shape[1] * _BLOCK))
        chunk_starts = torch.arange(
            0, len(self.products) + rows_per_chunk, rows_per_chunk, device=rows.device
        )
        cuts = torch.searchsorted(rows, chunk_starts)[1:-1]
        for occupied in self.occupied.tensor_split(cuts.cpu()):
            yield self._pairs_of(occupied)

    def _pairs_of(self, occupied: Int[Tensor, "N2 2"]) -> CandidatePairs:
        row, block = occupied.unbind(1)
        # Not "at least": NaN compares as false, so where a value is not a number, every code is a candidate.
        is_candidate = ~(self.products[row, block] < self.thresholds[row, block, None])
        position, offset = is_candidate.nonzero().unbind(1)
        return CandidatePairs(row[position], block[position] * _BLOCK + offset)


class _ErrorBound(NamedTuple):
    """Bound of a product's error: constant + linear |v| + quadratic |v|², the first two per block."""

    constant: Float[Tensor, " B"]
    linear: Float[Tensor, " B"]
    quadratic: Float[Tensor, ""]


class CandidateFilter:
    """The codes as a matrix to multiply with, in one precision, and the error bound of its products.

    Codes must come in order of length: then the codes of a block have errors of about the same size.
    """

    def __init__(self, codes: Float[Tensor, "K W"], squares: Float[Tensor, " K"], dtype: torch.dtype) -> None:
        padding = -len(codes) % _BLOCK
        # Padded to whole blocks by codes that are never nearest.
        bias = F.pad((squares / -2).to(dtype), (0, padding), value=-math.inf)
        channels = F.pad(codes.to(dtype), (0, 0, 0, padding))
        # The bias is one more channel, so that the product alone gives v·c - |c|²/2.
        self._matrix = torch.cat((channels, bias[:, None]), dim=1)
        longest = F.pad(squares, (0, padding)).view(-1, _BLOCK).amax(dim=1).sqrt()
        self._error_bound = _error_bound(longest, codes.shape[1], dtype)
        # Reused by every call, so that a search holds one chunk's products and no more.
        self._product_buffer = self._matrix.new_empty(0)

    def __len__(self) -> int:
        """Return the number of products of one vector."""
        return len(self._matrix)

    def candidates(self, vectors: Float[Tensor, "R W"], k: int) -> CandidateBlocks:
        """Return candidates among which are each vector's `k` nearest codes; valid until the next call."""
        vectors = vectors.to(self._matrix.dtype)
        blocks = self._products(vectors).view(len(vectors), -1, _BLOCK)
        groups = blocks
        if 1 < k <= blocks[0].numel() // _SUBBLOCK:
            groups = _subblock_maxima(blocks)
        block_maxima = groups.amax(dim=2)

        bound = self._error_bound
        lengths = vectors.square().sum(dim=1).sqrt()[:, None]
        error = torch.addcmul(bound.constant, lengths, bound.linear)
        if k == 1:
            kth_lower_bound = (block_maxima - error).amax(dim=1, keepdim=True)
        else:
            lower_bounds = (groups - error[:, :, None]).flatten(1)
            kth_lower_bound = lower_bounds.topk(k, dim=1).values[:, -1:]
        # Errors count twice: once in the bound that k codes reach, once in the product compared with it.
        thresholds = kth_lower_bound - 2 * bound.quadratic * lengths.square() - error
        # Not "at least", as in `CandidateBlocks`: NaN makes every code a candidate.
        occupied = (~(block_maxima < thresholds)).nonzero()
        return CandidateBlocks(blocks, thresholds, occupied)

    def _products(self, vectors: Float[Tensor, "R W"]) -> Float[Tensor, "R _"]:
        if len(self._product_buffer) < len(vectors):
            self._product_buffer = self._matrix.new_empty(len(vectors), len(self._matrix))
        out = self._product_buffer[: len(vectors)]
        with torch.autocast(vectors.device.type, enabled=False):
            return torch.mm(F.pad(vectors, (0, 1), value=1.0), self._matrix.T, out=out)


def _error_bound(longest: Float[Tensor, " B"], width: int, dtype: torch.dtype) -> _ErrorBound:
    """Bound a product's error against the float64 distance that decides; `longest` is of each block's codes.

    Any order of additions, fused or not: a sum of n terms is wrong by at most n u times the sum of its terms'
    sizes (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), here at most |v| |c| +
    |c|²/2. W + 8 terms leave room for the roundings of the bias and of this bound. The distance is a sum of W
    squares by halves, half of which is wrong by at most (log2 W + 4) u (|v| + |c|)² / 2.

    The smallest normal number stands for what underflows. A square that may overflow has no bound.
    """
    finfo = torch.finfo(dtype)
    product_unit = (width + 8) * finfo.eps / 2
    if dtype == torch.float32:
        product_unit += _input_rounding(longest.device)
    distance_unit = (math.ceil(math.log2(width)) + 4) * torch.finfo(torch.float64).eps / 4

    squares = longest.square()
    constant = (product_unit / 2 + distance_unit) * squares + width * finfo.tiny
    constant = constant.where(squares < finfo.max / 8, math.inf)
    linear = (product_unit + 2 * distance_unit) * longest
    quadratic = torch.tensor(distance_unit, device=longest.device)
    return _ErrorBound(constant.to(dtype), linear.to(dtype), quadratic.to(dtype))


def _subblock_maxima(blocks: Float[Tensor, "R B L"]) -> Float[Tensor, "R B _"]:
    """Return the maximum of every eighth product of a block.

    The few nearest codes are often in one block, but seldom in one sub-block. So the maxima of sub-blocks
    give a higher threshold than those of blocks, and there are eight times fewer of them than products.
    """
    while blocks.shape[2] > _BLOCK // _SUBBLOCK:
        # By halves, side by side: a reduction over so few numbers takes four times as long.
        first_half, second_half = blocks.chunk(2, dim=2)
        blocks = torch.maximum(first_half, second_half)
    return blocks


def _input_rounding(device: torch.device) -> float:
    """Return the rounding of products' inputs where PyTorch may multiply float32 as TF32 or bfloat16."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    if backend.matmul.fp32_precision in ("none", "ieee"):
        return 0.0
    return 2.0**-7
