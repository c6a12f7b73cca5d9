"""Packing: every document once and whole, the same after a stop, and hardly a position wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.loader.packing import Document, Pack, Packer, best_fit, best_fit_by_enumeration

LENGTHS = st.lists(st.integers(1, 50), max_size=120)


def documents(lengths: list[int], first: int = 0) -> list[Document]:
    return [Document(number, length) for number, length in enumerate(lengths, start=first)]


def used_share(packs: list[Pack], capacity: int) -> float:
    used = sum(document.length for pack in packs for document in pack)
    return used / (capacity * len(packs))


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=10), st.integers(0, 80))
def test_the_fit_by_bit_sets_is_that_of_trying_every_choice(lengths: list[int], room: int) -> None:
    assert best_fit(documents(lengths), room) == best_fit_by_enumeration(documents(lengths), room)


@settings(deadline=None)
@given(LENGTHS, st.integers(50, 120), st.integers(1, 40))
def test_every_document_is_in_one_sequence_and_none_is_over_full(
    lengths: list[int], capacity: int, pool: int
) -> None:
    packs = list(Packer(capacity, pool).packs(documents(lengths)))
    assert sorted(document for pack in packs for document in pack) == documents(lengths)
    assert all(0 < sum(document.length for document in pack) <= capacity for pack in packs)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 30))
def test_a_stopped_packer_goes_on_with_the_same_sequences(lengths: list[int], pool: int, stop: int) -> None:
    whole = list(Packer(64, pool).packs(documents(lengths)))
    first, coming = Packer(64, pool), iter(documents(lengths))
    begun = [pack for _, pack in zip(range(stop), first.packs(coming), strict=False)]
    second = Packer(64, pool, waiting=list(first.waiting))
    assert begun + list(second.packs(coming)) == whole


def test_no_document_waits_for_ever() -> None:
    lengths = [60] + [40] * 500
    packs = list(Packer(64, pool_size=8).packs(documents(lengths)))
    assert packs[0] == (Document(0, 60),)


@pytest.mark.parametrize(
    ("visual", "capacity", "text_only"), [(256, 4096, 0.0), (729, 4096, 0.5), (729, 8192, 0.3)]
)
def test_at_least_98_of_100_positions_are_used(visual: int, capacity: int, text_only: float) -> None:
    random = np.random.default_rng(0)
    texts, images = (
        random.lognormal(3.5, 0.8, 6000).astype(int).clip(4, 256),
        random.random(6000) >= text_only,
    )
    lengths = texts + (visual + 2) * images
    packs = list(Packer(capacity).packs(documents(lengths.tolist())))
    assert used_share(packs, capacity) > 0.98


def test_a_document_that_fits_nowhere_is_named() -> None:
    with pytest.raises(
        ValueError, match="sample 1 takes 70 positions, a sequence has 64: raise the sequence length"
    ):
        list(Packer(64).packs(documents([3, 70])))
