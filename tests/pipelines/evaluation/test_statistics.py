"""Errors and intervals: against SciPy, against hand-made sums, and against the truth in simulations."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.multiplicity import benjamini_hochberg, holm
from dualtoken.pipelines.evaluation.paired_statistics import (
    BATCH,
    DRAWS,
    influence_difference,
    paired_difference,
    paired_shares,
    ratio_of_medians,
)
from dualtoken.pipelines.evaluation.statistics import (
    Estimate,
    influence_estimate,
    least_detectable_loss,
    mean_estimate,
    share_estimate,
)

Values = NDArray[np.float64]
SIMULATIONS = 300
"""Simulations of a coverage; of 95 % it has a standard error of 1.3 %."""


def coverage(
    draw: Callable[[np.random.Generator], Estimate], truth: float, simulations: int = SIMULATIONS
) -> float:
    generator = np.random.default_rng(17)
    held = 0
    for _ in range(simulations):
        estimate = draw(generator)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
    return held / simulations


def clustered(generator: np.random.Generator) -> tuple[Values, Values]:
    """Return 80 clusters of unequal sizes whose samples are alike, and their names."""
    names = np.repeat(np.arange(80), generator.integers(1, 9, size=80))
    return generator.standard_normal(80)[names] + generator.standard_normal(len(names)), names.astype(float)


def test_a_means_interval_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    estimate = mean_estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert estimate.error == pytest.approx(stats.sem(values), rel=1e-12)


def test_clusters_of_one_are_no_clusters() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    alone = mean_estimate(values, [f"image {number}" for number in range(30)])
    assert alone[:5] == pytest.approx(mean_estimate(values)[:5], rel=1e-12)


def test_cluster_errors_are_the_sums_of_miller() -> None:
    values, names = [1.0, 3.0, 2.0, 6.0, 8.0], ["a", "a", "b", "b", "b"]
    # the mean is 4: the deviations are -3, -1 | -2, 2, 4, and sum to -4 and 4
    square = ((-4.0) ** 2 + 4.0**2) / 5**2
    plain = mean_estimate(values, names, correction="CR0")
    corrected = mean_estimate(values, names, correction="CR1")
    assert plain.error == pytest.approx(square**0.5, rel=1e-12)
    assert corrected.error == pytest.approx((2 * square) ** 0.5, rel=1e-12)
    assert corrected.freedom == 1


def test_a_repeated_sample_adds_nothing_where_its_copies_are_a_cluster() -> None:
    values = np.random.default_rng(1).standard_normal(40)
    repeated = mean_estimate(np.repeat(values, 5), np.repeat(np.arange(40), 5))
    assert repeated.error == pytest.approx(mean_estimate(values).error, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "draw", "truth"),
    [
        ("mean", lambda g: mean_estimate(g.exponential(size=200)), 1.0),
        ("share", lambda g: share_estimate((g.random(300) < 0.95).astype(float)), 0.95),
        ("clusters", lambda g: mean_estimate(*clustered(g)), 0.0),
        ("BCa", lambda g: paired_difference(np.zeros(50), g.exponential(size=50)), 1.0),
    ],
)
def test_intervals_of_95_percent_hold_the_truth_as_often(
    name: str, draw: Callable[[np.random.Generator], Estimate], truth: float
) -> None:
    assert 0.92 <= coverage(draw, truth) <= 0.98, name


def test_intervals_of_paired_shares_hold_the_truth_as_often() -> None:
    def draw(generator: np.random.Generator) -> Estimate:
        before = generator.random(200) < 0.8
        is_other = generator.random(200) < np.where(before, 0.1, 0.2)  # .8 of .1 are lost, .2 of .2 gained
        return paired_shares(before.astype(float), (before ^ is_other).astype(float))

    assert 0.93 <= coverage(draw, 0.2 * 0.2 - 0.8 * 0.1, simulations=1000) <= 0.975


def test_an_interval_that_ignores_clusters_is_too_short() -> None:
    assert coverage(lambda g: mean_estimate(clustered(g)[0]), 0.0) < 0.85


def test_clusters_are_resampled_as_wholes() -> None:
    def draw(generator: np.random.Generator) -> Estimate:
        values, names = clustered(generator)
        return paired_difference(np.zeros(len(values)), values, names)

    assert 0.92 <= coverage(draw, 0.0) <= 0.98


def test_the_bootstraps_interval_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    ours = paired_difference(np.zeros(40), values, seed=5)
    theirs = stats.bootstrap(  # of the same draws
        (values,), np.mean, n_resamples=DRAWS, batch=BATCH, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert "BCa" in ours.method
    assert ours.low is not None
    assert ours.high is not None
    assert ours.high - ours.value > 1.1 * (ours.value - ours.low)  # skewed as the values are


def test_the_permutation_test_agrees_with_scipys_over_all_signs() -> None:
    values = np.random.default_rng(4).normal(1.0, 1, size=10)
    ours = paired_difference(np.zeros(10), values).p
    theirs = stats.permutation_test(
        (values,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=10_000
    ).pvalue
    assert 0.005 < theirs < 0.1
    assert ours == pytest.approx(theirs, abs=0.01)


def test_a_sign_test_of_few_samples_counts_each_sign() -> None:
    estimate = paired_difference(np.zeros(6), np.ones(6) + np.arange(6) * 1e-3)
    assert estimate.p == pytest.approx(2 / 2**6, abs=0.006)  # all or none of six signs


def test_many_samples_are_tested_by_students_t() -> None:
    generator = np.random.default_rng(0)
    before = generator.standard_normal(2000)
    after = before + generator.normal(0.003, 0.1, size=2000)
    estimate = paired_difference(before, after)
    expected = stats.ttest_rel(after, before)
    assert estimate.method == "t"
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_many_samples_of_few_clusters_are_few() -> None:
    values = np.random.default_rng(0).standard_normal(4000)
    assert "BCa" in paired_difference(np.zeros(4000), values, np.arange(4000) % 50).method


def test_results_do_not_depend_on_earlier_ones() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    assert paired_difference(np.zeros(100), values) == paired_difference(np.zeros(100), values)
    assert paired_difference(np.zeros(100), values, seed=1) != paired_difference(np.zeros(100), values)


def test_equal_scores_differ_by_nothing_for_certain() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    estimate = paired_difference(values, values)
    assert (estimate.value, estimate.low, estimate.high, estimate.p) == (0, 0, 0, 1)


def test_mcnemars_test_counts_only_samples_that_changed() -> None:
    before = np.array([1] * 90 + [0] * 10, dtype=float)
    after = before.copy()
    after[:9] = 0
    after[90] = 1
    estimate = paired_shares(before, after)
    assert estimate.value == pytest.approx(-0.08)
    assert estimate.p == pytest.approx(stats.binomtest(1, 10).pvalue, rel=1e-12)
    assert paired_shares(before, before).p == 1


def test_newcombes_interval_is_that_of_his_paper() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:2635), table II, of 36, 12, 2, 0 samples: .20, .0569 to .3404
    before = np.array([1] * 48 + [0] * 2, dtype=float)
    after = np.array([1] * 36 + [0] * 12 + [1] * 2, dtype=float)
    estimate = paired_shares(after, before)
    assert estimate.value == pytest.approx(0.20)
    assert (estimate.low, estimate.high) == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_a_slight_correlation_of_paired_shares_counts_as_none() -> None:
    before = np.array([1] * 9 + [0] * 5, dtype=float)
    after = np.array([1] * 6 + [0] * 3 + [1] * 3 + [0] * 2, dtype=float)  # ad - bc is 3, less than n / 2
    low, high = wilson(9, 14)
    width = ((9 / 14 - low) ** 2 + (high - 9 / 14) ** 2) ** 0.5
    estimate = paired_shares(before, after)
    assert (estimate.low, estimate.high) == pytest.approx((-width, width), rel=1e-9)


def wilson(ones: int, num: int) -> tuple[float, float]:
    """Return the roots of (share - x)^2 = 1.96^2 x (1 - x) / num."""
    square = float(stats.norm.ppf(0.975)) ** 2 / num
    share = ones / num
    middle = share + square / 2
    width = (middle**2 - (1 + square) * share**2) ** 0.5
    return (middle - width) / (1 + square), (middle + width) / (1 + square)


def test_a_shares_interval_is_wilsons() -> None:
    estimate = share_estimate([1.0] * 9 + [0.0])
    assert (estimate.low, estimate.high) == pytest.approx(wilson(9, 10), rel=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def variance_influence(values: Values) -> tuple[float, Values]:
    """A metric that is no mean, with its influences: the variance."""
    squares = (values - values.mean()) ** 2
    return float(squares.mean()), squares - squares.mean()


def test_influences_give_the_error_of_a_metric_that_is_no_mean() -> None:
    generator = np.random.default_rng(2)
    estimates = [
        influence_estimate(*variance_influence(generator.standard_normal(500))) for _ in range(SIMULATIONS)
    ]
    true_error = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.error or 0 for estimate in estimates]) == pytest.approx(true_error, rel=0.1)


def test_paired_influences_give_the_error_of_a_difference() -> None:
    generator = np.random.default_rng(3)
    estimates: list[Estimate] = []
    unpaired: list[float] = []
    for _ in range(SIMULATIONS):
        first = generator.standard_normal(500)
        second = 0.95 * first + 0.2 * generator.standard_normal(500)
        a, b = variance_influence(first), variance_influence(second)
        estimates.append(influence_difference(a[0], b[0], a[1], b[1]))
        unpaired.append(((a[1].var() + b[1].var()) / 500) ** 0.5)
    true_error = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.error or 0 for estimate in estimates]) == pytest.approx(true_error, rel=0.1)
    assert np.mean(unpaired) > 2 * true_error


def test_the_least_detectable_loss_is_found_four_times_out_of_five() -> None:
    generator = np.random.default_rng(4)
    loss = least_detectable_loss(mean_estimate(generator.normal(size=100)))
    assert loss is not None
    found = 0
    for _ in range(SIMULATIONS):
        values = generator.normal(-0.3168, 1, size=100)
        found += stats.t.cdf(values.mean() / stats.sem(values), 99) < 0.01
    assert found / SIMULATIONS == pytest.approx(0.8, abs=0.06)
    assert loss == pytest.approx(0.3168, rel=0.2)  # (2.326 + .842) / 10, with this sample's deviation
    known = Estimate(0.0, 4096, 0.4 / 64, None, None, "", freedom=4095)
    assert least_detectable_loss(known) == pytest.approx(0.0198, abs=1e-4)


def test_holm_is_the_step_down_of_his_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_benjamini_hochberg_is_scipys() -> None:
    p_values = np.random.default_rng(0).random(30) ** 3
    assert benjamini_hochberg(p_values.tolist()) == pytest.approx(stats.false_discovery_control(p_values))


def test_holm_errs_once_in_twenty_families() -> None:
    generator = np.random.default_rng(5)
    families = generator.random((2000, 8))
    assert np.mean([min(holm(family.tolist())) <= 0.05 for family in families]) == pytest.approx(
        0.05, abs=0.015
    )


def test_what_slows_both_does_not_change_the_ratio_of_medians() -> None:
    generator = np.random.default_rng(6)
    slowness = generator.lognormal(0, 0.5, size=40)
    estimate = ratio_of_medians(slowness, 1.1 * slowness)
    assert estimate.value == pytest.approx(1.1)
    assert (estimate.low, estimate.high) == pytest.approx((1.1, 1.1))
    other = ratio_of_medians(slowness, 1.1 * generator.permutation(slowness))
    assert other.low is not None
    assert other.low < 1.0


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (lambda: mean_estimate([1.0]), "fewer than 2"),
        (lambda: mean_estimate([1.0, 2.0], ["a", "a"]), "fewer than 2"),
        (lambda: influence_estimate(1.0, [0.0]), "fewer than 2"),
        (lambda: influence_difference(1.0, 2.0, [0.0], [0.0]), "fewer than 2"),
        (lambda: paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0]), "fewer than 5"),
        (lambda: ratio_of_medians([1.0, 2.0], [2.0, 2.0]), "fewer than 5"),
    ],
)
def test_too_few_samples_have_no_interval_and_say_so(estimate: Callable[[], Estimate], reason: str) -> None:
    found = estimate()
    assert (found.low, found.high, found.p) == (None, None, None)
    assert reason in found.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda values: mean_estimate(values, name="psnr"), "column psnr has 1 values that are no numbers"),
        (lambda values: share_estimate(values, name="top1"), "column top1 has"),
        (lambda values: paired_difference([1.0] * 3, values, name="ssim"), "column ssim has"),
        (lambda values: influence_estimate(1.0, values, name="fd"), "nan in row 1"),
        (lambda values: ratio_of_medians([1.0] * 3, values, name="speed"), "column speed has"),
    ],
)
def test_what_is_no_number_is_refused_by_its_column(
    call: Callable[[Sequence[float]], Estimate], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call([0.0, float("nan"), 1.0])


def test_values_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UserError, match="psnr has 2 and 3 values"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], name="psnr")
    with pytest.raises(UserError, match="psnr has 2 values and 1 clusters"):
        mean_estimate([1.0, 2.0], ["a"], name="psnr")
    with pytest.raises(UserError, match="psnr has the shape"):
        mean_estimate([], name="psnr")
    with pytest.raises(UserError, match="top1 has values beside 0 and 1"):
        share_estimate([0.0, 0.5], name="top1")
