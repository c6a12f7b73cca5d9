"""Quantisers as graphs for other runtimes: the same codes, by a search whose steps do not depend on the data.

B images, N tokens, D depths, W channels, V channels of a code, G codebooks (one, or one per depth), K codes, C candidates, P sums kept.
A matrix product finds the nearest candidates, their differences in float64 decide; ties go to the lowest index.
"""

import math
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualtoken.model.quantize.base import Quantizer
from dualtoken.model.quantize.beam import code_marks, of_parents
from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.split import SplitQuantizer, unit_length

_CANDIDATES = 8
"""Codes that are compared exactly beside those asked for; two at a float32's rounding of each other are rare."""


def exportable(quantizer: Quantizer) -> "ExportableResidual | ExportableSplit | ExportableScalar":
    """Return what has a quantiser's `encode` and `lookup` and fits into a graph."""
    if isinstance(quantizer, ResidualQuantizer):
        return ExportableResidual(quantizer)
    if isinstance(quantizer, SplitQuantizer):
        return ExportableSplit(quantizer)
    assert isinstance(quantizer, ScalarQuantizer)
    return ExportableScalar(quantizer)


class _Books(nn.Module):
    """Codebooks and the search in them."""

    def __init__(self, books: Float[Tensor, "G K V"]) -> None:
        super().__init__()
        self.register_buffer("books", books.detach().clone())
        # Where several codes are equal, all may be candidates or none but one: the first of them alone is.
        first = torch.stack([_is_first_of_equals(book) for book in books])
        self.register_buffer("halves", torch.where(first, books.detach().square().sum(dim=2) / 2, math.inf))
        self.num_different = first.sum(dim=1).tolist()

    def vectors(self, ids: Int[Tensor, "*S"], depth: int) -> Float[Tensor, "*S V"]:
        return nn.functional.embedding(ids, self._of("books", depth))

    def nearest(self, vectors: Float[Tensor, "*S V"], depth: int) -> Int[Tensor, "*S"]:
        return self.several(vectors, depth, 1)[0][..., 0]

    def several(
        self, vectors: Float[Tensor, "*S V"], depth: int, count: int
    ) -> tuple[Int[Tensor, "*S C"], Float[Tensor, "*S C"]]:
        """Return the nearest different codes, nearest first, and their squared distances; fewer than asked where there are fewer."""
        codes, halves = self._of("books", depth), self._of("halves", depth)
        count = min(count, self.num_different[self._place(depth)])
        found = (vectors @ codes.T - halves).topk(min(count + _CANDIDATES - 1, len(codes)), dim=-1).indices
        distances = (
            (self.vectors(found, depth).double() - vectors[..., None, :].double()).square().sum(dim=-1)
        )
        # Of values that are no numbers nothing is nearest: code 0, as in the search proper.
        real = vectors.isfinite().all(dim=-1, keepdim=True)
        distances = torch.where(halves[found].isinf() | ~real, math.inf, distances)
        return _least(distances, torch.where(real, found, 0), count)

    def _of(self, name: str, depth: int) -> Tensor:
        return cast("Tensor", getattr(self, name))[self._place(depth)]

    def _place(self, depth: int) -> int:
        return depth if len(self.num_different) > 1 else 0


class ExportableResidual(_Books):
    """A residual quantiser, with its beam."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__(quantizer.books)
        self.depth, self.beam, self.shared = (
            quantizer.config.depth,
            quantizer.config.beam,
            quantizer.config.shared,
        )
        self.register_buffer("marks", code_marks(quantizer.config.num_codes))

    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the codes of tokens: as `model.quantize.beam` finds them, of which a beam of 1 is the nearest code each time."""
        if self.beam == 1:
            return self._greedy(tokens)
        residuals, ids, marks = (
            tokens[:, :, None],
            None,
            torch.zeros_like(tokens[:, :, :1], dtype=torch.int64),
        )
        for depth in range(self.depth):
            found, distances = self.several(residuals, depth, self.beam)
            sums, tried = found.shape[2:]
            places = torch.arange(sums * tried, device=tokens.device).expand(*tokens.shape[:2], -1)
            alike = (
                (marks[..., None] + cast("Tensor", self.marks)[found]).flatten(2) if self.shared else places
            )
            best, _ = _least(distances.flatten(2), places, min(self.beam, sums * tried), alike)
            chosen, parents, marks = found.flatten(2).gather(2, best), best // tried, alike.gather(2, best)
            residuals = of_parents(residuals, parents) - self.vectors(chosen, depth)
            ids = (
                chosen[..., None]
                if ids is None
                else torch.cat((of_parents(ids, parents), chosen[..., None]), dim=3)
            )
        assert ids is not None
        return ids[:, :, 0]

    def _greedy(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        residual, ids = tokens, []
        for depth in range(self.depth):
            ids.append(self.nearest(residual, depth))
            residual = residual - self.vectors(ids[-1], depth)
        return torch.stack(ids, dim=2)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the sum over depth of the codes."""
        total = self.vectors(ids[..., 0], 0)
        for depth in range(1, self.depth):
            total = total + self.vectors(ids[..., depth], depth)
        return total


class ExportableSplit(_Books):
    """A split multi-codebook quantiser."""

    def __init__(self, quantizer: SplitQuantizer) -> None:
        super().__init__(quantizer.codes)
        self.depth, self.normalized = quantizer.config.depth, quantizer.config.normalized

    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the codes of tokens, each part's nearest in its own codebook."""
        parts = tokens.unflatten(2, (self.depth, -1))
        if self.normalized:
            parts = unit_length(parts)
        return torch.stack([self.nearest(parts[:, :, depth], depth) for depth in range(self.depth)], dim=2)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the parts' codes side by side."""
        return torch.cat([self.vectors(ids[..., depth], depth) for depth in range(self.depth)], dim=2)


class ExportableScalar(nn.Module):
    """A scalar quantiser, which searches nothing."""

    def __init__(self, quantizer: ScalarQuantizer) -> None:
        super().__init__()
        self.encode, self.lookup = quantizer.ids, quantizer.lookup


def _least(
    values: Float[Tensor, "*S C"],
    keys: Int[Tensor, "*S C"],
    count: int,
    alike: Int[Tensor, "*S C"] | None = None,
) -> tuple[Int[Tensor, "*S _"], Float[Tensor, "*S _"]]:
    """Return the keys of the `count` least values, and these, least first, of equal ones the lowest key first.

    What is marked `alike` counts once, by its lowest key.
    """
    alike = keys if alike is None else alike
    kept, least = [], []
    for _ in range(count):
        least.append(values.amin(dim=-1, keepdim=True))
        first = _lowest(keys, values <= least[-1])
        same = alike == _lowest(alike, keys == first)
        kept.append(_lowest(keys, same))
        values = torch.where(same, math.inf, values)
    return torch.cat(kept, dim=-1), torch.cat(least, dim=-1)


def _lowest(keys: Int[Tensor, "*S C"], among: Bool[Tensor, "*S C"]) -> Int[Tensor, "*S 1"]:
    return torch.where(among, keys, torch.iinfo(keys.dtype).max).amin(dim=-1, keepdim=True)


def _is_first_of_equals(codes: Float[Tensor, "K V"]) -> Bool[Tensor, " K"]:
    _, group = torch.unique(codes, dim=0, return_inverse=True)
    numbers = torch.arange(len(codes), device=codes.device)
    least = torch.full_like(group, len(codes)).scatter_reduce(0, group, numbers, "amin")
    return least[group] == numbers
