"""Which codes may be the nearest to a vector, by matrix products and a proven bound of their rounding.

R vectors, K codes, W channels, B blocks of L codes, N blocks that hold a candidate, P pairs of a vector and a code. A product gives
v·c - |c|²/2, the largest of which is the nearest code's, but for rounding, and rounding depends on the batch, the chunk and the
threads. So products only name candidates: every code that rounding could have kept from being the best.
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
"""Codes whose maximum is taken first: candidates are looked for only in blocks that hold one."""
_PART = 8
"""Codes whose maximum stands for them where several nearest are asked for."""


class Pairs(NamedTuple):
    """Candidates; all of a row together."""

    rows: Int[Tensor, " P"]  # index of the vector
    ids: Int[Tensor, " P"]  # index of the code


class Candidates(NamedTuple):
    """Products of some vectors with all codes, and what it takes to be a candidate."""

    blocks: Float[Tensor, "R B L"]  # products; those that fill up the last block are -inf
    least: Float[Tensor, "R B"]  # less is not a candidate
    places: Int[
        Tensor, "N 2"
    ]  # row and block of each block with a candidate, in order; each row has one or more

    def crowded(self, most: int) -> Bool[Tensor, " R"] | None:
        """Tell which rows have candidates in more than `most` blocks; None if none has."""
        if len(self.places) - len(self.blocks) < most:
            return None
        crowded = torch.bincount(self.places[:, 0], minlength=len(self.blocks)) > most
        return crowded if crowded.any() else None

    def without(self, rows: Bool[Tensor, " R"]) -> "Candidates":
        """Leave out the candidates of some rows."""
        return self._replace(places=self.places[~rows[self.places[:, 0]]])

    def pairs(self) -> Iterator[Pairs]:
        """List the candidates, about `MAX_PAIRS` at once, rows and codes ascending."""
        if len(self.places) * _BLOCK <= MAX_PAIRS:
            yield self._listed(self.places)
            return
        row, size = self.places[:, 0].contiguous(), max(1, MAX_PAIRS // (self.blocks.shape[1] * _BLOCK))
        ends = torch.arange(0, len(self.blocks) + size, size, device=row.device)
        yield from map(self._listed, self.places.tensor_split(torch.searchsorted(row, ends)[1:-1].cpu()))

    def _listed(self, places: Int[Tensor, "N2 2"]) -> Pairs:
        row, block = places.unbind(1)
        # Not "at least": where a value is not a number, every code is a candidate.
        place, offset = (~(self.blocks[row, block] < self.least[row, block, None])).nonzero().unbind(1)
        return Pairs(row[place], block[place] * _BLOCK + offset)


class CandidateSearch:
    """The codes as a matrix to multiply with; they come in order of length, so that a block's codes are wrong by about as much."""

    def __init__(self, codes: Float[Tensor, "K W"], squares: Float[Tensor, " K"], dtype: torch.dtype) -> None:
        more, width = -len(codes) % _BLOCK, codes.shape[1]
        # Filled up to whole blocks by codes that are never nearest.
        bias = F.pad((squares / -2).to(dtype), (0, more), value=-math.inf)
        self._rows = torch.cat((F.pad(codes.to(dtype), (0, 0, 0, more)), bias[:, None]), dim=1)
        longest = F.pad(squares, (0, more)).view(-1, _BLOCK).amax(dim=1).sqrt()
        self._length, self._both, self._own = (
            part.to(dtype) for part in self._rounding(longest, width, dtype)
        )
        self._held = self._rows.new_empty(0)

    def __len__(self) -> int:
        """Return the number of products of one vector."""
        return len(self._rows)

    def near(self, vectors: Float[Tensor, "R W"], count: int) -> Candidates:
        """Return products with candidates among which are each vector's `count` nearest codes; they last until the next call."""
        vectors = vectors.to(self._rows.dtype)
        if len(self._held) < len(vectors):
            self._held = self._rows.new_empty(len(vectors), len(self._rows))
        with torch.autocast(vectors.device.type, enabled=False):
            products = torch.mm(
                F.pad(vectors, (0, 1), value=1.0), self._rows.T, out=self._held[: len(vectors)]
            )
        blocks = products.view(len(vectors), -1, _BLOCK)
        parts = _parts(blocks) if 1 < count <= blocks[0].numel() // _PART else blocks
        peaks, size = parts.amax(dim=2), vectors.square().sum(dim=1).sqrt()[:, None]
        wrong = torch.addcmul(self._length, size, self._both)
        reached = peaks - wrong if count == 1 else (parts - wrong[:, :, None]).flatten(1)
        least = _reached(reached, count) - 2 * self._own * size.square() - wrong
        return Candidates(blocks, least, (~(peaks < least)).nonzero())

    def _rounding(
        self, longest: Float[Tensor, " B"], width: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bound a product's error against the distance in float64 that decides: a + b |v| + c |v|², a and b per block.

        Any order of additions, fused or not: a sum of n terms is wrong by at most n u times the sum of its terms' sizes (Higham,
        Accuracy and Stability of Numerical Algorithms, section 3.1), here at most |v| |c| + |c|²/2; W + 8 leaves room for the
        roundings of the bias and of this bound. The distance is a sum of W squares by halves, half of which is wrong by at most
        (log2 W + 4) u (|v| + |c|)² / 2. The smallest normal number stands for what underflows; a square that may overflow has no bound.
        """
        unit = (width + 8) * torch.finfo(dtype).eps / 2 + (
            _input_rounding(longest.device) if dtype == torch.float32 else 0
        )
        exact = (math.ceil(math.log2(width)) + 4) * torch.finfo(torch.float64).eps / 4
        constant = (unit / 2 + exact) * longest.square() + width * torch.finfo(dtype).tiny
        constant = constant.where(longest.square() < torch.finfo(dtype).max / 8, math.inf)
        return constant, (unit + 2 * exact) * longest, torch.tensor(exact, device=longest.device)


def _parts(blocks: Float[Tensor, "R B L"]) -> Float[Tensor, "R B _"]:
    """Return the maximum of every eighth product of a block: the nearest few are seldom in one part, often in one block."""
    while blocks.shape[2] > _BLOCK // _PART:
        # By halves, side by side: a reduction over so few numbers takes four times as long.
        blocks = torch.maximum(*blocks.chunk(2, dim=2))
    return blocks


def _reached(products: Float[Tensor, "R _"], count: int) -> Float[Tensor, "R 1"]:
    """Return a value that at least `count` of a row reach."""
    return products.amax(dim=1, keepdim=True) if count == 1 else products.topk(count, dim=1).values[:, -1:]


def _input_rounding(device: torch.device) -> float:
    """Return the relative rounding of products' inputs where users let PyTorch multiply float32 as TF32 or bfloat16."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return 0.0 if backend.matmul.fp32_precision in ("none", "ieee") else 2.0**-7
