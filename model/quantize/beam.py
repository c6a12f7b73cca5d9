"""Beam search over the depths of a residual quantiser: keeps several sums per depth, not the nearest code alone.

M vectors, P sums kept, C codes tried for each, W channels, D depths.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.quantize.nearest import CodeSearch


@torch.no_grad()
def beam_codes(vectors: Float[Tensor, "M W"], books: Iterable[CodeSearch], beam: int) -> Int[Tensor, "M D"]:
    """Return the codes of the best sum found, one per book; a beam of 1 takes the nearest code each time.

    At each depth the `beam` sums nearest to the vector are kept, by exact distances. Of equal ones, that which extends the
    better sum so far comes first, then that of the lower code: so ids depend on the vector alone.
    """
    residuals = vectors[:, None]
    ids = torch.zeros((len(vectors), 1, 0), dtype=torch.int64, device=vectors.device)
    for book in books:
        found, distances = book.several(residuals.flatten(0, 1), beam)
        tried = found.shape[1]
        best = distances.view(len(vectors), -1).sort(dim=1, stable=True).indices[:, :beam]
        chosen = found.view(len(vectors), -1).gather(1, best)
        residuals = _of_parents(residuals, best // tried) - book.codes[chosen]
        ids = torch.cat((_of_parents(ids, best // tried), chosen[..., None]), dim=2)
    return ids[:, 0]


def _of_parents(values: Tensor, parents: Int[Tensor, "M P"]) -> Tensor:
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))
