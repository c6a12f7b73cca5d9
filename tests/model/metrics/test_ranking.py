"""Ranks are those of a stable sort, and nothing that is not a number is right."""

import math

import torch

from dualtoken.model.metrics.ranking import ranks


def test_ranks_are_those_of_a_stable_sort() -> None:
    scores = torch.randint(0, 6, (40, 12), generator=torch.Generator().manual_seed(0)).double()
    order = scores.argsort(dim=1, descending=True, stable=True).tolist()
    for chosen in range(12):
        found = ranks(scores, torch.full((40,), chosen)).tolist()
        assert found == [places.index(chosen) for places in order]


def test_a_score_that_is_not_a_number_is_behind_all_where_it_is_chosen_and_before_all_elsewhere() -> None:
    scores = torch.tensor([[1.0, math.nan, 0.5], [math.nan, math.nan, math.nan]])
    assert ranks(scores, torch.tensor([1, 0])).tolist() == [3, 3]
    assert ranks(scores[:1], torch.tensor([0])).tolist() == [1]
    assert ranks(scores[:1], torch.tensor([2])).tolist() == [2]
