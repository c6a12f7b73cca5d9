"""Beam search over the depths of a residual quantiser: keeps several hypotheses, not the nearest code alone.

A hypothesis is a sum of one code per depth so far. M vectors, P hypotheses kept (Q of the next depth), C
codes tried for each, T = P C extensions, W channels, D depths, K codes.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dualtoken.model.quantize.nearest import CodebookIndex


@torch.no_grad()
def beam_search(
    vectors: Float[Tensor, "M W"], codebooks: Iterable[CodebookIndex], beam: int, *, shared: bool
) -> Int[Tensor, "M D"]:
    """Return the codes of the best sum found, one per codebook; a beam of 1 takes the nearest code each time.

    At each depth the `beam` sums nearest to the vector are kept, by exact distances. Of equal sums, the one
    that extends the better hypothesis comes first, then the one with the lower code: so ids depend on the
    vector alone.

    Where all depths share one codebook (`shared`), the same codes in another order are the same sum but for
    rounding. Of these only the first is kept, so that rounding does not decide the order of codes, and the
    beam holds different sums.
    """
    num_vectors = len(vectors)
    residuals = vectors[:, None]
    ids = torch.zeros((num_vectors, 1, 0), dtype=torch.int64, device=vectors.device)
    hashes = torch.zeros((num_vectors, 1), dtype=torch.int64, device=vectors.device)
    for codebook in codebooks:
        shape = residuals.shape[:2]  # (M, P)
        neighbors = codebook.k_nearest(residuals.flatten(0, 1), beam)
        num_tried = neighbors.ids.shape[1]
        codes = neighbors.ids.unflatten(0, shape).flatten(1)
        distances = neighbors.distances.unflatten(0, shape).flatten(1)
        if shared:
            keys = code_hash_keys(len(codebook.codes)).to(codes.device)
            hashes = hashes.repeat_interleave(num_tried, dim=1) + keys[codes]
            distances = _keep_first_of_duplicates(distances, hashes)

        best = distances.sort(dim=1, stable=True).indices[:, :beam]
        parents = best // num_tried
        chosen = codes.gather(1, best)
        residuals = gather_parents(residuals, parents) - codebook.codes[chosen]
        ids = torch.cat((gather_parents(ids, parents), chosen[..., None]), dim=2)
        if shared:
            hashes = hashes.gather(1, best)
    return ids[:, 0]


def code_hash_keys(num_codes: int) -> Int[Tensor, " K"]:
    """Return a random key per code; the sum of keys hashes a multiset of codes, whatever their order.

    Different multisets almost surely have different sums.
    """
    return torch.randint(2**56, (num_codes,), generator=torch.Generator().manual_seed(0))


def _keep_first_of_duplicates(
    distances: Float[Tensor, "M T"], hashes: Int[Tensor, "M T"]
) -> Float[Tensor, "M T"]:
    """Give the first of the extensions with one hash the least of their distances, the others infinity."""
    sorted_hashes, order = hashes.sort(dim=1, stable=True)
    is_first = F.pad(sorted_hashes[:, 1:] != sorted_hashes[:, :-1], (1, 0), value=True)
    groups = is_first.cumsum(dim=1) - 1
    infinite = torch.full_like(distances, math.inf)
    least = infinite.scatter_reduce(1, groups, distances.gather(1, order), "amin")
    kept = least.gather(1, groups).where(is_first, math.inf)
    return torch.empty_like(distances).scatter(1, order, kept)


def gather_parents(
    values: Shaped[Tensor, "*M P _"], parents: Int[Tensor, "*M Q"]
) -> Shaped[Tensor, "*M Q _"]:
    """Return, for each new hypothesis, the row of the hypothesis that it extends."""
    return values.gather(-2, parents[..., None].expand(*parents.shape, values.shape[-1]))
