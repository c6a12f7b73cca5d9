"""Places in a ranking by score. B queries, C candidates."""

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor


def ranks(scores: Float[Tensor, "B C"], chosen: Int[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Return how many candidates of each query stand before its chosen one, from 0.

    Of equal scores the first candidate stands first. Scores that are not numbers stand before all others, but
    have rank C where they are the chosen one's: a broken model is never right by chance.
    """
    score = scores.gather(1, chosen.long()[:, None])
    is_equal = scores == score
    num_behind = (scores < score).sum(dim=1)
    # Few rows have other candidates of the same score, and only these need a look at places.
    rows = (is_equal.sum(dim=1) > 1).nonzero()[:, 0]
    places = torch.arange(scores.shape[1], device=scores.device)
    num_behind[rows] += (is_equal[rows] & (places > chosen[rows, None])).sum(dim=1)
    rank = scores.shape[1] - 1 - num_behind
    return torch.where(score[:, 0].isnan(), scores.shape[1], rank)
