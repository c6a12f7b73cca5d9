"""The code nearest to a vector, exactly, without keeping all distances.

M vectors, K codes, W channels, P pairs of a vector and a code. A float32 matrix product gives v·c - |c|²/2, the largest of which
is the nearest code's, but for rounding, and rounding depends on the batch, the chunk and the threads. So the product only
names candidates: every code that it puts within a proven rounding bound of the best. Differences in float64 decide among them, in an
order of additions of our own, so that the answer depends on the vector and the codes alone. Ties go to the lowest index.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_THREAD_PRODUCTS = 2**20
"""Products held per thread: 4 MiB, so that the pass after the matrix product finds them in cache."""
_MAX_PRODUCTS = 2**22
"""Products held at once: 16 MiB."""
_MAX_PAIRS = 2**18
"""Candidates weighed at once, where nearly all codes are equally near."""
_BLOCK = 64
"""Codes whose maximum is taken first: candidates are looked for only in blocks that hold one."""


class Pairs(NamedTuple):
    """Candidates, in order of row, then code; all of a row together."""

    rows: Int[Tensor, " P"]  # index of the vector
    ids: Int[Tensor, " P"]  # index of the code


class Nearest(NamedTuple):
    """The nearest codes of each vector, nearest first, of equal ones the lowest first."""

    ids: Int[Tensor, "M C"]
    distances: Float[Tensor, "M C"]  # squared, float64


def nearest_codes(vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"]) -> Int[Tensor, " M"]:
    """Return the index of the code with the least squared distance, ties to the lowest; float32 inputs, exact."""
    return CodeSearch(codes).nearest(vectors)


class CodeSearch:
    """Looks for codes near to vectors; what depends on the codes alone is worked out once.

    Needs at most 64 MB beside inputs and outputs. A vector with a value that is not a number gets code 0.
    """

    @torch.no_grad()
    def __init__(self, codes: Float[Tensor, "K W"]) -> None:
        squares, more = codes.square().sum(dim=1, dtype=torch.float64), -len(codes) % _BLOCK
        # Filled up to whole blocks by codes that are never nearest.
        bias = F.pad((squares / -2).float(), (0, more), value=-math.inf)
        self.codes = codes
        self._rows = torch.cat((F.pad(codes, (0, 0, 0, more)), bias[:, None]), dim=1)
        self._largest = squares.amax().sqrt().float()
        self._held = codes.new_empty(0)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "M W"]) -> Int[Tensor, " M"]:
        """Return the nearest code of each vector."""
        ids = torch.full((len(vectors),), len(self.codes), dtype=torch.int64, device=vectors.device)
        for part, (rows, found) in self._candidates(vectors, 1):
            if len(rows) == part.stop - part.start:
                ids[part] = found  # one candidate each
                continue
            distances = squared_distances(vectors, self.codes, rows, found)
            least = distances.new_full((len(vectors),), math.inf).scatter_reduce_(0, rows, distances, "amin")
            # Not "equal": beside NaN every code stays, and the lowest is taken.
            kept = ~(distances > least[rows])
            ids.scatter_reduce_(0, rows[kept], found[kept], "amin")
        return ids

    @torch.no_grad()
    def several(self, vectors: Float[Tensor, "M W"], count: int) -> Nearest:
        """Return the `count` nearest codes of each vector, or all where there are fewer."""
        count = min(count, len(self.codes))
        ids = torch.zeros((len(vectors), count), dtype=torch.int64, device=vectors.device)
        nearest = torch.full((len(vectors), count), math.inf, dtype=torch.float64, device=vectors.device)
        for _, (rows, found) in self._candidates(vectors, count):
            distances = squared_distances(vectors, self.codes, rows, found)
            by_distance = distances.sort(stable=True).indices
            order = by_distance[rows[by_distance].sort(stable=True).indices]
            rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
            kept = rank < count
            # `rows` ascend, so sorting moved no pair out of its row's stretch.
            ids[rows[kept], rank[kept]] = found[order[kept]]
            nearest[rows[kept], rank[kept]] = distances[order[kept]]
        return Nearest(ids, nearest)

    def _candidates(self, vectors: Float[Tensor, "M W"], count: int) -> Iterator[tuple[slice, Pairs]]:
        """Yield slices of the vectors with pairs among which are each vector's `count` nearest codes."""
        size = len(self._rows)
        threads = torch.get_num_threads() if vectors.device.type == "cpu" else _MAX_PRODUCTS
        step = max(1, min(threads * _THREAD_PRODUCTS, _MAX_PRODUCTS) // size)
        if self._held.shape != (held := (min(step, len(vectors)), size)):
            self._held = vectors.new_empty(held)
        ones, rounding = F.pad(vectors, (0, 1), value=1.0), self._rounding(vectors)
        for start in range(0, len(vectors), step):
            chunk = ones[start : start + step]
            with torch.autocast(vectors.device.type, enabled=False):
                products = torch.mm(chunk, self._rows.T, out=self._held[: len(chunk)])
            blocks = products.view(len(chunk), -1, _BLOCK)
            peaks = blocks.amax(dim=2)
            least = _reached(peaks, count) - rounding[start : start + step]
            # Not "at least": where a value is not a number, every code is a candidate.
            near = (~(peaks < least[:, None])).nonzero()
            crowded = len(near) * _BLOCK > _MAX_PAIRS
            for part, places in _by_rows(near, max(1, _MAX_PAIRS // size)) if crowded else ((slice(0, len(chunk)), near),):
                yield slice(start + part.start, start + part.stop), self._pairs(blocks, least, places, start)

    def _pairs(self, blocks: Float[Tensor, "R B L"], least: Float[Tensor, " R"], near: Int[Tensor, "N 2"], start: int) -> Pairs:
        """Return the products that are not under their row's `least`, looking only into the blocks `near`."""
        row, block = near.unbind(1)
        place, offset = (~(blocks[row, block] < least[row, None])).nonzero().unbind(1)
        rows, ids = row[place] + start, block[place] * _BLOCK + offset
        if len(self._rows) > len(self.codes):
            real = ids < len(self.codes)
            rows, ids = rows[real], ids[real]
        return Pairs(rows, ids)

    def _rounding(self, vectors: Float[Tensor, "M W"]) -> Float[Tensor, " M"]:
        """Bound how much two products can be wrong against each other: any order of additions, fused or not.

        A sum of n terms is wrong by at most n u times the sum of its terms' sizes (Higham, Accuracy and Stability of Numerical
        Algorithms, section 3.1), here at most |v| |c| + |c|²/2; W + 8 leaves room for the roundings of the bias and of this
        function. The smallest normal number stands for what underflows.
        """
        width = vectors.shape[1]
        unit = (width + 8) * torch.finfo(torch.float32).eps / 2 + _input_rounding(vectors.device)
        size = vectors.square().sum(dim=1).sqrt() * self._largest + self._largest.square() / 2
        return 2 * unit * size + width * torch.finfo(torch.float32).tiny


def squared_distances(
    vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"], rows: Int[Tensor, " P"], ids: Int[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """Return |vectors[rows] - codes[ids]|² in float64, the same for a pair whatever the others are."""
    size = max(1, _MAX_PAIRS * 2 // vectors.shape[1])
    return torch.cat(
        [
            row_sums((codes[code].double() - vectors[row].double()).square())
            for row, code in zip(rows.split(size), ids.split(size), strict=True)
        ]
    )


def row_sums(values: Float[Tensor, "P W"]) -> Float[Tensor, " P"]:
    """Sum each row by halves: elementwise additions, since the order within a reduction may depend on the shape."""
    while (width := values.shape[1]) > 1:
        half = width // 2
        rest = values[:, 2 * half :]
        values = torch.cat((values[:, :half] + values[:, half : 2 * half], rest), dim=1)
    return values[:, 0]


def _by_rows(near: Int[Tensor, "N 2"], size: int) -> Iterator[tuple[slice, Int[Tensor, "N2 2"]]]:
    """Part (row, block) pairs, in order of row, by stretches of `size` rows; each row has one pair or more."""
    num_rows = int(near[-1, 0]) + 1
    for first in range(0, num_rows, size):
        last = min(first + size, num_rows)
        begin, end = torch.searchsorted(near[:, 0].contiguous(), torch.tensor([first, last], device=near.device)).tolist()
        yield slice(first, last), near[begin:end]


def _reached(peaks: Float[Tensor, "R B"], count: int) -> Float[Tensor, " R"]:
    """Return a value that at least `count` products of a row reach."""
    if count == 1:
        return peaks.amax(dim=1)
    if count > peaks.shape[1]:
        return peaks.new_full((len(peaks),), -math.inf)
    return peaks.topk(count, dim=1).values[:, -1]


def _input_rounding(device: torch.device) -> float:
    """Return the relative rounding of products' inputs where users let PyTorch multiply float32 as TF32 or bfloat16."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return 0.0 if backend.matmul.fp32_precision in ("none", "ieee") else 2.0**-7
