"""What codes cost and where they agree, against scipy and by hand."""

import math

import pytest
import torch
from scipy.stats import entropy

from dualtoken.model.metrics.codebook import (
    agreement,
    code_rate,
    codebook_use,
    count_codes,
    dead_codes,
    entropy_bits,
    equal_codes,
)


def counted() -> torch.Tensor:
    ids = torch.randint(0, 12, (50, 4, 3), generator=torch.Generator().manual_seed(0)).square() % 13
    return count_codes(ids, 16)


def test_entropy_is_that_of_scipy_and_the_logarithm_of_perplexity() -> None:
    counts = counted()
    counts[2] = 0
    counts[2, 3] = 5
    found = entropy_bits(counts)
    assert found.tolist() == pytest.approx(entropy(counts.numpy(), base=2, axis=1).tolist(), rel=1e-12)
    perplexities = codebook_use(counts).perplexity_per_depth
    torch.testing.assert_close(found, perplexities.log2(), rtol=1e-12, atol=1e-12)
    assert entropy_bits(torch.zeros(2, 4, dtype=torch.int64)).tolist() == [0, 0]
    assert entropy_bits(torch.full((1, 32), 7)).tolist() == [pytest.approx(5, rel=1e-15)]


def test_dead_codes_are_those_that_no_position_chose_at_a_depth() -> None:
    counts = count_codes(torch.tensor([[0, 5], [1, 5], [2, 5], [3, 5]]), 8)
    assert dead_codes(counts).tolist() == [4, 7]
    assert dead_codes(counts + count_codes(torch.tensor([[7, 5]]), 8)).tolist() == [3, 7]


def test_bits_are_those_of_positions_depths_and_size_and_of_the_entropy() -> None:
    counts = torch.tensor([[1, 1, 1, 1], [2, 0, 0, 2]])
    rate = code_rate(counts, num_positions=9, num_pixels=24 * 24)
    assert rate.stored_per_image == 9 * 2 * 2
    assert rate.stored_per_pixel == 9 * 2 * 2 / 576
    assert rate.entropy_per_image == pytest.approx(9 * (2 + 1), rel=1e-15)
    assert rate.entropy_per_pixel == pytest.approx(27 / 576, rel=1e-15)
    assert code_rate(counted(), 1, 1).stored_per_image == 3 * math.log2(16)


def test_equal_codes_are_counted_per_image_and_depth_and_add_up() -> None:
    codes = torch.randint(0, 9, (3, 4, 5, 2), generator=torch.Generator().manual_seed(0))
    others = codes.clone()
    others[1, 0, :, 1] += 1
    others[2, :, :, 0] += 1
    equal = equal_codes(codes, others)
    assert equal.dtype == torch.int64
    assert equal.tolist() == [[20, 20], [20, 15], [0, 20]]
    assert agreement(equal, 20).tolist() == pytest.approx([2 / 3, 55 / 60], rel=1e-15)
    stored = codes.to(torch.uint16)
    assert equal_codes(stored, others).tolist() == equal.tolist()
    assert equal_codes(codes.flatten(1, 2), others.flatten(1, 2)).tolist() == equal.tolist()
