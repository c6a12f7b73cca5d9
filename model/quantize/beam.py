"""Beam search over the depths of a residual quantiser: keeps several sums per depth, not the nearest code alone.

M vectors, P sums kept (Q of the next depth), C codes tried for each, T = P C sums tried, W channels, D depths, K codes.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dualtoken.model.quantize.nearest import CodeSearch


@torch.no_grad()
def beam_codes(
    vectors: Float[Tensor, "M W"], books: Iterable[CodeSearch], beam: int, *, shared: bool
) -> Int[Tensor, "M D"]:
    """Return the codes of the best sum found, one per book; a beam of 1 takes the nearest code each time.

    At each depth the `beam` sums nearest to the vector are kept, by exact distances. Of equal ones, that which extends the
    better sum so far comes first, then that of the lower code: so ids depend on the vector alone. Where all depths share one
    book (`shared`), the same codes in another order are the same sum but for rounding: of these only the first is kept, so that
    rounding does not decide the order of codes, and the beam holds different sums.
    """
    residuals = vectors[:, None]
    ids = torch.zeros((len(vectors), 1, 0), dtype=torch.int64, device=vectors.device)
    marks = torch.zeros((len(vectors), 1), dtype=torch.int64, device=vectors.device)
    for book in books:
        found, distances = (
            each.unflatten(0, residuals.shape[:2]).flatten(1)
            for each in book.several(residuals.flatten(0, 1), beam)
        )
        tried = found.shape[1] // residuals.shape[1]
        if shared:
            marks = (
                marks.repeat_interleave(tried, dim=1) + code_marks(len(book.codes)).to(found.device)[found]
            )
            distances = _joined(distances, marks)
        best = distances.sort(dim=1, stable=True).indices[:, :beam]
        chosen = found.gather(1, best)
        residuals = of_parents(residuals, best // tried) - book.codes[chosen]
        ids = torch.cat((of_parents(ids, best // tried), chosen[..., None]), dim=2)
        if shared:
            marks = marks.gather(1, best)
    return ids[:, 0]


def code_marks(num_codes: int) -> Int[Tensor, " K"]:
    """Return a random number per code: those of the same codes have one sum, whatever their order, and other sets almost surely another."""
    return torch.randint(2**56, (num_codes,), generator=torch.Generator().manual_seed(0))


def _joined(distances: Float[Tensor, "M T"], marks: Int[Tensor, "M T"]) -> Float[Tensor, "M T"]:
    """Return the least distance of those marked alike at the first of them, and infinity at the others."""
    ordered, order = marks.sort(dim=1, stable=True)
    first = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    groups = first.cumsum(dim=1) - 1
    least = torch.full_like(distances, math.inf).scatter_reduce(1, groups, distances.gather(1, order), "amin")
    return torch.empty_like(distances).scatter(1, order, least.gather(1, groups).where(first, math.inf))


def of_parents(values: Shaped[Tensor, "*M P _"], parents: Int[Tensor, "*M Q"]) -> Shaped[Tensor, "*M Q _"]:
    """Return what belongs to the sums that new ones extend."""
    return values.gather(-2, parents[..., None].expand(*parents.shape, values.shape[-1]))
