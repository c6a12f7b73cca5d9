"""Quantisers as graphs for other runtimes: the same codes, by a search whose steps do not depend on the data.

B images, N tokens, D depths, W channels, V channels of a code, G codebooks (one, or one per depth), K codes,
C candidates, P hypotheses of a beam. A matrix product finds the nearest candidates, and their differences in
float64 decide. Ties go to the lowest index.
"""

import math
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualtoken.model.quantize.base import Quantizer
from dualtoken.model.quantize.beam import code_hash_keys, gather_parents
from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.split import SplitQuantizer, unit_length

_EXTRA_CANDIDATES = 7
"""Codes compared exactly beside those asked for; two within float32's rounding of each other are rare."""


def exportable(quantizer: Quantizer) -> "ExportableResidual | ExportableSplit | ExportableScalar":
    """Return a module with a quantiser's `encode` and `lookup` that fits into a graph."""
    if isinstance(quantizer, ResidualQuantizer):
        return ExportableResidual(quantizer)
    if isinstance(quantizer, SplitQuantizer):
        return ExportableSplit(quantizer)
    assert isinstance(quantizer, ScalarQuantizer)
    return ExportableScalar(quantizer)


class _ExportableCodebooks(nn.Module):
    """Codebooks and the search in them."""

    def __init__(self, codebooks: Float[Tensor, "G K V"]) -> None:
        super().__init__()
        self.register_buffer("codebooks", codebooks.detach().clone())
        # Equal codes could take all places of candidates. So only the first of them may be one: half squares
        # of the others are infinite.
        first = torch.stack([_is_first_of_equals(codes) for codes in codebooks])
        half_squares = codebooks.detach().square().sum(dim=2) / 2
        self.register_buffer("half_squares", torch.where(first, half_squares, math.inf))
        self.num_different = first.sum(dim=1).tolist()

    def vectors(self, ids: Int[Tensor, "*S"], depth: int) -> Float[Tensor, "*S V"]:
        return nn.functional.embedding(ids, self._codes(depth))

    def nearest(self, vectors: Float[Tensor, "*S V"], depth: int) -> Int[Tensor, "*S"]:
        ids, _ = self.k_nearest(vectors, depth, 1)
        return ids[..., 0]

    def k_nearest(
        self, vectors: Float[Tensor, "*S V"], depth: int, k: int
    ) -> tuple[Int[Tensor, "*S C"], Float[Tensor, "*S C"]]:
        """Return the `k` nearest different codes, nearest first, and their squared distances.

        Returns all different codes if there are fewer than `k`.
        """
        codes = self._codes(depth)
        half_squares = self._half_squares(depth)
        k = min(k, self.num_different[self._codebook(depth)])
        num_candidates = min(k + _EXTRA_CANDIDATES, len(codes))
        candidates = (vectors @ codes.T - half_squares).topk(num_candidates, dim=-1).indices
        differences = self.vectors(candidates, depth).double() - vectors[..., None, :].double()
        distances = differences.square().sum(dim=-1)
        # Nothing is nearest to values that are not finite numbers: code 0, as in `CodebookIndex`.
        finite = vectors.isfinite().all(dim=-1, keepdim=True)
        distances = torch.where(half_squares[candidates].isinf() | ~finite, math.inf, distances)
        return _k_smallest(distances, torch.where(finite, candidates, 0), k)

    def _codes(self, depth: int) -> Float[Tensor, "K V"]:
        return cast("Tensor", self.codebooks)[self._codebook(depth)]

    def _half_squares(self, depth: int) -> Float[Tensor, " K"]:
        return cast("Tensor", self.half_squares)[self._codebook(depth)]

    def _codebook(self, depth: int) -> int:
        """Return the index of a depth's codebook."""
        shared = len(self.num_different) == 1
        return 0 if shared else depth


class ExportableResidual(_ExportableCodebooks):
    """A residual quantiser, with its beam."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__(quantizer.codebooks)
        self.depth = quantizer.config.depth
        self.beam = quantizer.config.beam
        self.shared = quantizer.config.shared
        self.register_buffer("hash_keys", code_hash_keys(quantizer.config.num_codes))

    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the same codes as `ResidualQuantizer.encode`."""
        if self.beam == 1:
            return self._encode_greedily(tokens)
        return self._beam_search(tokens)

    def _encode_greedily(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        residual = tokens
        ids = []
        for depth in range(self.depth):
            nearest = self.nearest(residual, depth)
            ids.append(nearest)
            residual = residual - self.vectors(nearest, depth)
        return torch.stack(ids, dim=2)

    def _beam_search(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        residuals = tokens[:, :, None]
        ids = None
        hashes = torch.zeros_like(tokens[:, :, :1], dtype=torch.int64)
        hash_keys = cast("Tensor", self.hash_keys)
        for depth in range(self.depth):
            codes, distances = self.k_nearest(residuals, depth, self.beam)
            num_hypotheses, num_tried = codes.shape[2:]
            num_extensions = num_hypotheses * num_tried
            places = torch.arange(num_extensions, device=tokens.device).expand(*tokens.shape[:2], -1)
            # Sums of the same codes in another order count once, as in `beam.py`.
            groups = (hashes[..., None] + hash_keys[codes]).flatten(2) if self.shared else places
            best, _ = _k_smallest(distances.flatten(2), places, min(self.beam, num_extensions), groups)

            parents = best // num_tried
            chosen = codes.flatten(2).gather(2, best)
            hashes = groups.gather(2, best)
            residuals = gather_parents(residuals, parents) - self.vectors(chosen, depth)
            if ids is None:
                ids = chosen[..., None]
            else:
                ids = torch.cat((gather_parents(ids, parents), chosen[..., None]), dim=3)
        assert ids is not None
        return ids[:, :, 0]

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the sum over depth of the codes."""
        total = self.vectors(ids[..., 0], 0)
        for depth in range(1, self.depth):
            total = total + self.vectors(ids[..., depth], depth)
        return total


class ExportableSplit(_ExportableCodebooks):
    """A split multi-codebook quantiser."""

    def __init__(self, quantizer: SplitQuantizer) -> None:
        super().__init__(quantizer.codes)
        self.depth = quantizer.config.depth
        self.normalized = quantizer.config.normalized

    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the codes of tokens: each part's nearest in its own codebook."""
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
        self.encode = quantizer.ids
        self.lookup = quantizer.lookup


def _k_smallest(
    values: Float[Tensor, "*S C"],
    keys: Int[Tensor, "*S C"],
    k: int,
    groups: Int[Tensor, "*S C"] | None = None,
) -> tuple[Int[Tensor, "*S _"], Float[Tensor, "*S _"]]:
    """Return the keys of the `k` smallest values, and these values: smallest first, ties by the lowest key.

    Each of `groups` counts once, by its lowest key; without groups, each key does.
    """
    if groups is None:
        groups = keys
    smallest_keys = []
    smallest_values = []
    for _ in range(k):
        smallest = values.amin(dim=-1, keepdim=True)
        smallest_values.append(smallest)
        first_key = _lowest(keys, values <= smallest)
        same_group = groups == _lowest(groups, keys == first_key)
        smallest_keys.append(_lowest(keys, same_group))
        values = torch.where(same_group, math.inf, values)
    return torch.cat(smallest_keys, dim=-1), torch.cat(smallest_values, dim=-1)


def _lowest(keys: Int[Tensor, "*S C"], mask: Bool[Tensor, "*S C"]) -> Int[Tensor, "*S 1"]:
    """Return the lowest of the keys under a mask."""
    return torch.where(mask, keys, torch.iinfo(keys.dtype).max).amin(dim=-1, keepdim=True)


def _is_first_of_equals(codes: Float[Tensor, "K V"]) -> Bool[Tensor, " K"]:
    """Tell which codes have no equal one before them."""
    _, groups = torch.unique(codes, dim=0, return_inverse=True)
    indices = torch.arange(len(codes), device=codes.device)
    first_indices = torch.full_like(groups, len(codes)).scatter_reduce(0, groups, indices, "amin")
    return first_indices[groups] == indices
