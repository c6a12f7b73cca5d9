"""Exact nearest-code search (squared L2) that does not keep all distances: filter, then refine.

M vectors, K codes, U different codes, W channels, C nearest codes asked for, P pairs of a vector and a code.

Filter: float32 products name candidates (`candidates.py`). Refinement: differences in float64 decide among
them, in an order of additions of our own, so that the answer depends on the vector and the codes alone. Ties
go to the lowest index. Where many codes are equal or nearly so, as after restarts from few vectors, equal
ones are joined, and float64 products leave few of those that float32 cannot tell apart.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.quantize.candidates import MAX_PAIRS, CandidateBlocks, CandidateFilter, CandidatePairs

_THREAD_PRODUCTS = 2**20
"""Products held per thread: 4 MiB, so that the pass after the matrix product finds them in cache."""
_MAX_PRODUCTS = 2**22
"""Products held at once on a CPU: 16 MiB."""
_GPU_PRODUCTS = 2**26
"""Products held at once on a GPU: 256 MiB.

A GPU wants many rows at once, and after each product the host waits for the number of candidates.
"""
_MAX_AMBIGUOUS_BLOCKS = 8
"""Blocks with candidates, beyond the codes asked for, that a vector may have after float32 products.

With more, float64 products cost less than exact distances.
"""


class Neighbors(NamedTuple):
    """The nearest codes of each vector, nearest first, ties by the lowest index; equal codes count once."""

    ids: Int[Tensor, "M C"]
    distances: Float[Tensor, "M C"]  # squared, float64


class _RankedPairs(NamedTuple):
    """Candidate pairs with their distances, sorted by row, then distance, then code."""

    rows: Int[Tensor, " P"]
    ids: Int[Tensor, " P"]
    distances: Float[Tensor, " P"]  # squared, float64
    rank: Int[Tensor, " P"]  # place among the pairs of the row, from 0


def nearest_codes(vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"]) -> Int[Tensor, " M"]:
    """Return the code with the least squared distance, exactly, for float32; ties to the lowest index."""
    return CodebookIndex(codes).nearest(vectors)


class CodebookIndex:
    """Exact nearest-neighbour index of a codebook: what depends on the codes alone is computed once.

    On a CPU, a search among the published models' 16,384 codes of 32 channels needs at most 64 MB beside
    inputs and outputs. A vector with a value that is not a finite number gets code 0.
    """

    @torch.no_grad()
    def __init__(self, codes: Float[Tensor, "K W"]) -> None:
        squares = row_sums(codes.double().square())
        self.codes = codes
        self._ids = _different_codes(codes, squares)
        self._squares = squares[self._ids]
        self._float32_filter = CandidateFilter(codes[self._ids], self._squares, torch.float32)

    @cached_property
    def _float64_filter(self) -> CandidateFilter:
        """Filter for the vectors whose candidates float32 leaves too many; made only if there are any."""
        return CandidateFilter(self.codes[self._ids], self._squares, torch.float64)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "M W"]) -> Int[Tensor, " M"]:
        """Return the nearest code of each vector."""
        not_found = len(self.codes)
        nearest = torch.full((len(vectors),), not_found, dtype=torch.int64, device=vectors.device)
        for rows, ids in self._candidates(vectors, 1):
            one_candidate_each = (rows[1:] != rows[:-1]).all()
            if one_candidate_each:
                nearest[rows] = ids
                continue
            distances = squared_distances(vectors, self.codes, rows, ids)
            infinite = distances.new_full((len(vectors),), math.inf)
            least = infinite.scatter_reduce_(0, rows, distances, "amin")
            is_nearest = distances == least[rows]
            nearest.scatter_reduce_(0, rows[is_nearest], ids[is_nearest], "amin")
        return nearest.masked_fill_(nearest == not_found, 0)

    @torch.no_grad()
    def k_nearest(self, vectors: Float[Tensor, "M W"], k: int) -> Neighbors:
        """Return the `k` nearest different codes of each vector, or all where there are fewer."""
        k = min(k, len(self._ids))
        ids = torch.zeros((len(vectors), k), dtype=torch.int64, device=vectors.device)
        distances = torch.full((len(vectors), k), math.inf, dtype=torch.float64, device=vectors.device)
        for candidates in self._candidates(vectors, k):
            pairs = self._ranked(vectors, candidates)
            kept = pairs.rank < k
            rows = pairs.rows[kept]
            rank = pairs.rank[kept]
            ids[rows, rank] = pairs.ids[kept]
            distances[rows, rank] = pairs.distances[kept]
        return Neighbors(ids, distances)

    def _ranked(self, vectors: Float[Tensor, "M W"], pairs: CandidatePairs) -> _RankedPairs:
        """Compute exact distances, and rank each row's pairs by them, ties to the lowest code."""
        # Three sorts, the least important key first; the later ones are stable and keep the earlier order.
        by_id = pairs.ids.argsort()
        rows = pairs.rows[by_id]
        ids = pairs.ids[by_id]
        distances = squared_distances(vectors, self.codes, rows, ids)
        by_distance = distances.argsort(stable=True)
        order = by_distance[rows[by_distance].argsort(stable=True)]

        rows = rows[order]
        first_of_row = torch.searchsorted(rows, rows)
        rank = torch.arange(len(rows), device=rows.device) - first_of_row
        return _RankedPairs(rows, ids[order], distances[order], rank)

    def _candidates(self, vectors: Float[Tensor, "M W"], k: int) -> Iterator[CandidatePairs]:
        """Yield pairs among which are each finite vector's `k` nearest codes."""
        finite = vectors.isfinite().all(dim=1).nonzero()[:, 0]
        if not len(finite):
            return
        for rows in finite.split(self._rows_per_chunk(vectors.device)):
            blocks = self._float32_filter.candidates(vectors[rows], k)
            ambiguous = blocks.ambiguous_rows(_MAX_AMBIGUOUS_BLOCKS + k)
            if ambiguous is None:
                yield from self._pairs(blocks, rows)
                continue
            yield from self._pairs(blocks.without(ambiguous), rows)
            for part in rows[ambiguous].split(max(1, MAX_PAIRS // len(self._float64_filter))):
                yield from self._pairs(self._float64_filter.candidates(vectors[part], k), part)

    def _rows_per_chunk(self, device: torch.device) -> int:
        """Return how many vectors' products are held at once."""
        products = _GPU_PRODUCTS
        if device.type == "cpu":
            products = min(torch.get_num_threads() * _THREAD_PRODUCTS, _MAX_PRODUCTS)
        return max(1, products // len(self._float32_filter))

    def _pairs(self, blocks: CandidateBlocks, rows: Int[Tensor, " R"]) -> Iterator[CandidatePairs]:
        """List a chunk's candidates by the indices of all vectors and of the codebook."""
        for chunk_rows, places in blocks.pairs():
            is_code = places < len(self._ids)  # the others pad the last block
            yield CandidatePairs(rows[chunk_rows[is_code]], self._ids[places[is_code]])


def squared_distances(
    vectors: Float[Tensor, "M W"],
    codes: Float[Tensor, "K W"],
    rows: Int[Tensor, " P"],
    ids: Int[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """Return |vectors[rows] - codes[ids]|² in float64, the same for a pair whatever the other pairs are."""
    pairs_per_chunk = max(1, MAX_PAIRS * 2 // vectors.shape[1])
    distances = []
    for chunk_rows, chunk_ids in zip(rows.split(pairs_per_chunk), ids.split(pairs_per_chunk), strict=True):
        # One expression, so that no float64 copy outlives its use: these are large.
        distances.append(row_sums((codes[chunk_ids].double() - vectors[chunk_rows].double()).square()))
    return torch.cat(distances)


def row_sums(values: Float[Tensor, "P W"]) -> Float[Tensor, " P"]:
    """Sum each row by halves of a power of two, in an order that does not depend on the shape.

    The additions are elementwise, since the order within a reduction of PyTorch may depend on the shape.
    """
    half = 1 << (values.shape[1] - 1).bit_length() >> 1
    while half:
        low = values[:, :half]
        high = values[:, half:]
        values = torch.cat((low[:, : high.shape[1]] + high, low[:, high.shape[1] :]), dim=1)
        half //= 2
    return values[:, 0]


def _different_codes(codes: Float[Tensor, "K W"], squares: Float[Tensor, " K"]) -> Int[Tensor, " U"]:
    """Return the indices of codes in order of length, of equal ones the lowest only."""
    sorted_squares, order = squares.sort(stable=True)
    if not (sorted_squares[1:] == sorted_squares[:-1]).any():
        return order
    # Codes of one length may differ. A hash, exact in any order of additions, brings equal ones together.
    by_hash = _code_hashes(codes).argsort(stable=True)
    order = by_hash[squares[by_hash].argsort(stable=True)]
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = (codes[order[1:]] != codes[order[:-1]]).any(dim=1)
    return order[is_first]


def _code_hashes(codes: Float[Tensor, "K W"]) -> Int[Tensor, " K"]:
    """Return an integer per code, the same for equal codes: its bits times random odd numbers, added up."""
    bits = (codes + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0, which equals it
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, codes.shape[1:], generator=generator).to(codes.device)
    return (bits * (2 * factors + 1)).sum(dim=1)
