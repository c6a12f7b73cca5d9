"""The code nearest to a vector, exactly, without keeping all distances.

M vectors, K codes, W channels, P pairs of a vector and a code. Float32 products name candidates (`products.py`), and differences
in float64 decide among them, in an order of additions of our own, so that the answer depends on the vector and the codes alone.
Ties go to the lowest index. Where codes crowd, as after restarts from few vectors, equal ones are joined, and float64 products
leave few of those that float32 cannot tell apart.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.quantize.candidates import MAX_PAIRS, Candidates, CandidateSearch, Pairs

_THREAD_PRODUCTS = 2**20
"""Products held per thread: 4 MiB, so that the pass after the matrix product finds them in cache."""
_MAX_PRODUCTS = 2**22
"""Products held at once: 16 MiB."""
_GPU_PRODUCTS = 2**26
"""On a GPU 256 MiB: it wants many rows at once, and after each product the host waits for the number of candidates."""
_CROWD = 8
"""Blocks with candidates, beyond those asked for, from which on float64 products cost less than weighing them."""


class Nearest(NamedTuple):
    """The nearest codes of each vector, nearest first, of equally near ones the lowest first; equal codes count once."""

    ids: Int[Tensor, "M C"]
    distances: Float[Tensor, "M C"]  # squared, float64


def nearest_codes(vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"]) -> Int[Tensor, " M"]:
    """Return the index of the code with the least squared distance, ties to the lowest; float32 inputs, exact."""
    return CodeSearch(codes).nearest(vectors)


class CodeSearch:
    """Looks for codes near to vectors; what depends on the codes alone is worked out once.

    On a CPU, a search among the published models' 16,384 codes of 32 channels needs at most 64 MB beside inputs and outputs.
    A vector with a value that is not a finite number gets code 0.
    """

    @torch.no_grad()
    def __init__(self, codes: Float[Tensor, "K W"]) -> None:
        squares = row_sums(codes.double().square())
        self.codes, self._ids = codes, _different(codes, squares)
        self._squares = squares[self._ids]
        self._single = CandidateSearch(codes[self._ids], self._squares, torch.float32)

    @cached_property
    def _double(self) -> CandidateSearch:
        return CandidateSearch(self.codes[self._ids], self._squares, torch.float64)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "M W"]) -> Int[Tensor, " M"]:
        """Return the nearest code of each vector."""
        none = len(self.codes)
        ids = torch.full((len(vectors),), none, dtype=torch.int64, device=vectors.device)
        for rows, found in self._candidates(vectors, 1):
            if (rows[1:] != rows[:-1]).all():
                ids[rows] = found  # one candidate each
                continue
            distances = squared_distances(vectors, self.codes, rows, found)
            least = distances.new_full((len(vectors),), math.inf).scatter_reduce_(0, rows, distances, "amin")
            nearest = distances == least[rows]
            ids.scatter_reduce_(0, rows[nearest], found[nearest], "amin")
        return ids.masked_fill_(ids == none, 0)

    @torch.no_grad()
    def several(self, vectors: Float[Tensor, "M W"], count: int) -> Nearest:
        """Return the `count` nearest different codes of each vector, or all where there are fewer."""
        count = min(count, len(self._ids))
        ids = torch.zeros((len(vectors), count), dtype=torch.int64, device=vectors.device)
        nearest = torch.full((len(vectors), count), math.inf, dtype=torch.float64, device=vectors.device)
        for pairs in self._candidates(vectors, count):
            by_id = pairs.ids.argsort()
            rows, found = pairs.rows[by_id], pairs.ids[by_id]
            distances = squared_distances(vectors, self.codes, rows, found)
            by_distance = distances.argsort(stable=True)
            order = by_distance[rows[by_distance].argsort(stable=True)]
            rows, found, distances = rows[order], found[order], distances[order]
            rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
            kept = rank < count
            ids[rows[kept], rank[kept]] = found[kept]
            nearest[rows[kept], rank[kept]] = distances[kept]
        return Nearest(ids, nearest)

    def _candidates(self, vectors: Float[Tensor, "M W"], count: int) -> Iterator[Pairs]:
        """Yield pairs among which are each finite vector's `count` nearest codes."""
        on_cpu = vectors.device.type == "cpu"
        held = min(torch.get_num_threads() * _THREAD_PRODUCTS, _MAX_PRODUCTS) if on_cpu else _GPU_PRODUCTS
        step = max(1, held // len(self._single))
        finite = vectors.isfinite().all(dim=1).nonzero()[:, 0]
        for rows in finite.split(step) if len(finite) else ():
            near = self._single.near(vectors[rows], count)
            crowded = near.crowded(_CROWD + count)
            yield from self._named(near if crowded is None else near.without(crowded), rows)
            if crowded is not None:
                for part in rows[crowded].split(max(1, MAX_PAIRS // len(self._double))):
                    yield from self._named(self._double.near(vectors[part], count), part)

    def _named(self, near: Candidates, rows: Int[Tensor, " R"]) -> Iterator[Pairs]:
        for places, ids in near.pairs():
            real = ids < len(self._ids)  # others fill up a block
            yield Pairs(rows[places[real]], self._ids[ids[real]])


def squared_distances(
    vectors: Float[Tensor, "M W"],
    codes: Float[Tensor, "K W"],
    rows: Int[Tensor, " P"],
    ids: Int[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """Return |vectors[rows] - codes[ids]|² in float64, the same for a pair whatever the others are."""
    size = max(1, MAX_PAIRS * 2 // vectors.shape[1])
    return torch.cat(
        [
            row_sums((codes[code].double() - vectors[row].double()).square())
            for row, code in zip(rows.split(size), ids.split(size), strict=True)
        ]
    )


def row_sums(values: Float[Tensor, "P W"]) -> Float[Tensor, " P"]:
    """Sum each row by halves of a power of two: elementwise additions, since the order within a reduction may depend on the shape."""
    half = 1 << (values.shape[1] - 1).bit_length() >> 1
    while half:
        low, high = values[:, :half], values[:, half:]
        values = torch.cat((low[:, : high.shape[1]] + high, low[:, high.shape[1] :]), dim=1)
        half //= 2
    return values[:, 0]


def _different(codes: Float[Tensor, "K W"], squares: Float[Tensor, " K"]) -> Int[Tensor, " U"]:
    """Return the indices of codes in order of length, of equal ones the lowest only."""
    ordered, order = squares.sort(stable=True)
    if not (ordered[1:] == ordered[:-1]).any():
        return order
    # Codes of one length need not be equal: those that are come together by a hash, exact in any order of additions.
    by_hash = _hashes(codes).argsort(stable=True)
    order = by_hash[squares[by_hash].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = (codes[order[1:]] != codes[order[:-1]]).any(dim=1)
    return order[first]


def _hashes(codes: Float[Tensor, "K W"]) -> Int[Tensor, " K"]:
    bits = (codes + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0, which equals it
    factors = torch.randint(2**62, codes.shape[1:], generator=torch.Generator().manual_seed(0)).to(
        codes.device
    )
    return (bits * (2 * factors + 1)).sum(dim=1)
