"""Fresh weights come from their seed, and disturb no other random numbers, nor start a GPU."""

import pytest
import torch

from dualtoken.model.config.training import GanConfig
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.training.adversary import Adversary


def test_a_block_draws_from_its_seed_and_gives_the_state_back() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded_weights(1):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded_weights(1):
        assert torch.equal(torch.rand(3), first)


def test_numbers_are_those_of_the_seed() -> None:
    with seeded_weights(5):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_no_gpu_is_asked_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a GPU was started")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", refuse)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    Adversary(GanConfig(width=32), steps=10, seed=0, device=torch.device("cpu"))
