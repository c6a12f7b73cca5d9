"""Segments with prefixes: which positions each one reads, and in what order they stand."""

import pytest
import torch

from dualtoken.model.mllm.segments import Segments, key_positions, separate_turns


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_turns_follow_the_image_that_they_are_asked_about() -> None:
    # Two documents, the first with turns at 3 and 5, and padding.
    segments = separate_turns(ints(0, 6, 9, 12).int(), ints(3, 5))
    assert segments.cu_seqlens.tolist() == [0, 3, 5, 6, 9, 12]
    assert segments.prefixes is not None
    assert segments.prefixes.tolist() == [-1, 0, 0, -1, -1]
    assert segments.longest == 5
    assert segments.places().tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 0, 1, 2]
    read, bounds = key_positions(segments)
    assert bounds.tolist() == [0, 3, 8, 12, 15, 18]
    assert read.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11]


def test_documents_without_turns_stay_whole() -> None:
    bounds = ints(0, 4, 9).int()
    segments = separate_turns(bounds, torch.empty(0, dtype=torch.int64))
    assert segments.cu_seqlens.tolist() == bounds.tolist()
    assert segments.prefixes is None
    assert segments.longest == 5
    assert segments.places().tolist() == Segments(bounds, 5).places().tolist()


def test_a_part_counts_its_own_segments() -> None:
    segments = separate_turns(ints(0, 4, 8, 12).int(), ints(2, 6, 7))
    part = segments.between(4, 12)
    assert part.cu_seqlens.tolist() == [0, 2, 3, 4, 8]
    assert part.prefixes is not None
    assert part.prefixes.tolist() == [-1, 0, 0, -1]


def test_a_part_without_turns_has_no_prefixes() -> None:
    part = separate_turns(ints(0, 4, 8).int(), ints(2)).between(4, 8)
    assert part.prefixes is None
    assert part.cu_seqlens.tolist() == [0, 4]


def test_a_turn_that_has_no_image_before_it_is_refused() -> None:
    with pytest.raises(AssertionError, match="a turn stands after its image"):
        separate_turns(ints(0, 4, 8).int(), ints(4))
