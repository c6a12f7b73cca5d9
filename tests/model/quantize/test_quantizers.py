"""The residual quantiser: which codes, which gradients, and how the codebook moves."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dualtoken.model.config.quantizer import (
    AnyQuantizerConfig,
    QuantizerConfig,
    ScalarQuantizerConfig,
    SplitQuantizerConfig,
)
from dualtoken.model.quantize import (
    Quantized,
    ResidualQuantizer,
    build_quantizer,
    ema_codebook,
    nearest,
    nearest_codes,
)

CONFIG = QuantizerConfig(num_codes=16, depth=3, width=4, decay=0.9, restart_below=0.5)


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    torch.manual_seed(0)
    return ResidualQuantizer(CONFIG)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(1))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_every_code_is_its_own_nearest_code(quantizer: ResidualQuantizer) -> None:
    assert nearest_codes(quantizer.codes, quantizer.codes).tolist() == list(range(16))


def test_nearest_codes_are_those_of_float64_differences() -> None:
    torch.manual_seed(0)
    # Far from the origin, where float32 matrix products round away the differences.
    vectors = torch.randn(500, 8) + 100
    codes = torch.randn(64, 8) + 100
    exact = (vectors.double()[:, None] - codes.double()).square().sum(-1).argmin(1)
    assert torch.equal(nearest_codes(vectors, codes), exact)


def test_ties_go_to_the_lowest_index() -> None:
    codes = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest_codes(torch.tensor([[0.9, 0.1], [0.0, 3.0]]), codes).tolist() == [1, 1]


def test_codes_do_not_depend_on_the_chunk(
    quantizer: ResidualQuantizer, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantizer(tokens).ids
    monkeypatch.setattr(nearest, "_THREAD_PRODUCTS", 200)
    assert torch.equal(quantizer(tokens).ids, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config",
    [
        QuantizerConfig(num_codes=512, depth=2, width=16),
        QuantizerConfig(num_codes=512, depth=2, width=16, beam=3),
        SplitQuantizerConfig(kind="split", num_codes=512, depth=2, width=16),
        ScalarQuantizerConfig(kind="scalar", depth=3),
    ],
    ids=["residual", "beam", "split", "scalar"],
)
def test_autocast_changes_nothing(config: AnyQuantizerConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    tokens = torch.randn(4, 200, config.width)
    expected = quantizer(tokens)
    expected_ids = quantizer.encode(tokens)
    with torch.autocast("cpu", dtype=dtype):
        quantized = quantizer(tokens)
        assert torch.equal(quantizer.encode(tokens), expected_ids)
    for found, exact in zip(quantized, expected, strict=True):
        assert torch.equal(found, exact)
        assert found.dtype == exact.dtype


def test_each_depth_quantises_what_the_depths_before_left(
    quantizer: ResidualQuantizer, tokens: Tensor
) -> None:
    quantized = quantizer(tokens)
    residual = tokens
    for depth in range(3):
        assert torch.equal(quantized.residuals[:, :, depth], residual)
        residual = residual - quantizer.codes[quantized.ids[:, :, depth]]


def test_lookup_gives_the_vectors_of_forward_to_the_bit(quantizer: ResidualQuantizer, tokens: Tensor) -> None:
    quantized = quantizer(tokens)
    assert torch.equal(quantizer.lookup(quantized.ids), quantized.vectors)


def test_the_gradient_passes_straight_through(quantizer: ResidualQuantizer, tokens: Tensor) -> None:
    tokens.requires_grad_()
    weights = torch.arange(tokens.numel()).view_as(tokens).float()
    (quantizer(tokens).vectors * weights).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, weights)


def test_commitment_is_the_mean_squared_error_over_depths(
    quantizer: ResidualQuantizer, tokens: Tensor
) -> None:
    quantized = quantizer(tokens)
    errors = []
    for depth in range(3):
        codes = quantizer.codes[quantized.ids[:, :, : depth + 1]]
        errors.append(tokens - codes.sum(2))
    torch.testing.assert_close(quantized.commitment, torch.stack(errors).square().mean())


def one_hot_update(quantizer: ResidualQuantizer, quantized: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's formulas, written plainly in float64, without restarts."""
    hot = torch.nn.functional.one_hot(quantized.ids.flatten(), 16).double()
    counts = 0.9 * quantizer.counts.double() + 0.1 * hot.sum(0)
    sums = 0.9 * quantizer.sums.double() + 0.1 * hot.T @ quantized.residuals.flatten(0, 2).double()
    smoothed = (counts + 1e-5) / (counts.sum() + 16e-5) * counts.sum()
    return counts, sums, sums / smoothed[:, None]


def test_an_update_is_the_one_hot_moving_average(tokens: Tensor) -> None:
    quantizer = ResidualQuantizer(CONFIG.model_copy(update={"restart_below": None}))
    quantizer.counts.fill_(2.0)
    quantized = quantizer(tokens)
    counts, sums, codes = one_hot_update(quantizer, quantized)
    quantizer.update(quantized, seeded())
    torch.testing.assert_close(quantizer.counts.double(), counts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quantizer.sums.double(), sums, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quantizer.codes.double(), codes, rtol=1e-6, atol=1e-6)


def test_without_restarts_a_fresh_codebook_keeps_the_codes_that_nothing_chose(tokens: Tensor) -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(CONFIG.model_copy(update={"restart_below": None}))
    quantizer.codes[8:] += 1e3
    quantizer.sums.copy_(quantizer.codes)
    before = quantizer.codes.clone()
    quantized = quantizer(tokens)
    quantizer.update(quantized, seeded())
    torch.testing.assert_close(quantizer.codes[8:], before[8:], rtol=1e-3, atol=0)
    assert not torch.equal(quantizer.codes[:8], before[:8])


def test_unused_codes_restart_at_distinct_vectors_of_the_batch(
    quantizer: ResidualQuantizer, tokens: Tensor
) -> None:
    quantizer.counts.fill_(4.0)
    used = quantizer.codes[:8].clone()
    quantizer.counts[8:] = 0.0
    quantizer.codes[8:] = 1e6  # so that nothing chooses them
    quantized = quantizer(tokens)
    quantizer.update(quantized, seeded())
    batch = quantized.residuals.flatten(0, 2)
    # Laplace smoothing moves a code by about 1e-5 of itself.
    nearest = (quantizer.codes[8:, None] - batch).abs().amax(-1).min(dim=1)
    assert nearest.values.max() < 1e-3
    assert len(set(nearest.indices.tolist())) == 8
    assert (quantizer.codes[:8] - used).abs().max() < 10


def test_restarts_are_drawn_only_where_a_code_may_be_unused(
    quantizer: ResidualQuantizer, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = quantizer._draw_restarts

    def recorded(batches: Any, seed: int) -> Tensor:
        drawn.append(seed)
        return draw(batches, seed)

    monkeypatch.setattr(quantizer, "_draw_restarts", recorded)
    assert CONFIG.restart_below is not None
    last = CONFIG.restart_below / CONFIG.decay
    quantizer.counts.fill_(last + 1e-3)
    quantizer.update(quantizer(tokens), seeded())
    assert drawn == []
    quantizer.counts[3] = last - 1e-3
    quantizer.update(quantizer(tokens), seeded())
    assert len(drawn) == 1


@pytest.mark.parametrize(("count", "total"), [(16384, 1_492_992), (64, 100), (16, 16)])
def test_vectors_to_restart_at_are_distinct_spread_and_the_same_for_a_seed(count: int, total: int) -> None:
    numbers = ema_codebook._distinct_numbers(count, total, [7, 0])
    assert len(set(numbers.tolist())) == count
    assert 0 <= numbers.min() <= numbers.max() < total
    assert abs(numbers.mean() / total - 0.5) < 0.1
    assert (numbers == ema_codebook._distinct_numbers(count, total, [7, 0])).all()
    assert (numbers != ema_codebook._distinct_numbers(count, total, [7, 1])).any()


def test_of_few_vectors_each_is_taken_as_often_as_another() -> None:
    counts = np.bincount(ema_codebook._distinct_numbers(20, 6, [7, 0]))
    assert sorted(counts) == [3, 3, 3, 3, 4, 4]


def test_drawing_among_all_ranks_vectors_costs_a_fraction_of_their_permutation() -> None:
    def seconds(function: Callable[[], object]) -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    total = 1_492_992  # 8 ranks of 32 images, 729 tokens, 8 depths
    draws = min(seconds(lambda: ema_codebook._distinct_numbers(16384, total, [7, 0])) for _ in range(3))
    permutations = min(seconds(lambda: torch.randperm(total, generator=seeded())) for _ in range(3))
    assert draws < permutations / 3


def test_few_vectors_restart_many_codes(quantizer: ResidualQuantizer) -> None:
    quantizer.update(quantizer(torch.randn(1, 2, 4)), seeded())
    assert quantizer.codes.isfinite().all()


def test_repeated_updates_halve_the_error(tokens: Tensor) -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(CONFIG)
    generator = seeded()
    errors = []
    for _ in range(20):
        quantized = quantizer(tokens)
        errors.append((tokens - quantized.vectors).square().mean().item())
        quantizer.update(quantized, generator)
    assert errors[-1] < errors[0] / 2
