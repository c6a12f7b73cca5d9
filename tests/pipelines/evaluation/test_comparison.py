"""Comparisons of two evaluations: what pairs, what is refused by name, and what differences are called."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import ComparedSeries, Comparison
from dualtoken.pipelines.evaluation.comparison import compare, most_lost
from dualtoken.pipelines.evaluation.comparison_text import comparison_lines, comparison_markdown
from dualtoken.pipelines.evaluation.multiplicity import benjamini_hochberg, holm
from dualtoken.pipelines.evaluation.summary import (
    SCHEMA,
    Environment,
    EvaluationSummary,
    MetricValue,
    SetResult,
    Subject,
)

Values = NDArray[np.float64]
Evaluation = tuple[EvaluationSummary, dict[tuple[str, str], pa.Table]]
PLACE = ("scenes", "plain")
PROTOCOL = {"view": {"resize": "bicubic", "sizes": [256, 256]}, "batch": 32}
RNG = np.random.default_rng(0)
BASE = RNG.normal(30, 1, size=3000)
NOISE = RNG.normal(0, 0.1, size=3000)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def keys(num: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest()[:16] for number in range(num)]


def evaluation(
    name: str,
    scores: dict[str, Values] | None = None,
    *,
    table: dict[str, Any] | None = None,
    metric: dict[str, dict[str, Any]] | None = None,
    result: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    **more: Values,
) -> Evaluation:
    """Return an evaluation with these scores of each sample; the rest changes its fields."""
    scores = {**(scores or {}), **more}
    num = len(next(iter(scores.values())))
    metrics: dict[str, MetricValue] = {}
    for column, values in scores.items():
        fields: dict[str, Any] = {
            "value": float(values.mean()),
            "n": num,
            "direction": "higher",
            "margin": 0.05,
        }
        fields |= {"per_sample": column} | (metric or {}).get(column, {})
        metrics[column] = MetricValue(**fields)
    fields = {
        "set_name": PLACE[0],
        "set_hash": digest("set"),
        "protocol": PLACE[1],
        "protocol_hash": digest("protocol"),
        "protocol_content": PROTOCOL,
        "metrics": metrics,
        "scores": "scores/scenes/plain",
    }
    fields |= result or {}
    made = EvaluationSummary(
        evaluation=name,
        subject=Subject(kind="tokenizer", name=name, digest=digest(name)),
        results=(SetResult(**fields),),
        environment=Environment(code=""),
        measured_at="2026-01-01T00:00:00+00:00",
    )
    columns = {"key": pa.array(keys(num), pa.binary(16)), **scores, **(table or {})}
    return made.model_copy(update=summary or {}), {PLACE: pa.table(columns)}


def compared(a: Evaluation, b: Evaluation, primary: list[str] | None = None) -> Comparison:
    return compare(*a, *b, primary)


def only(a: Evaluation, b: Evaluation) -> ComparedSeries:
    return compared(a, b).series[0]


def refusal(a: Evaluation, b: Evaluation, primary: list[str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        compared(a, b, primary)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("shift", "direction", "margin", "verdict"),
    [
        (0.2, "higher", 0.05, "better"),
        (-0.2, "higher", 0.05, "worse"),
        (0.2, "lower", 0.05, "worse"),
        (-0.2, "lower", 0.05, "better"),
        (0.02, "higher", 0.05, "equal within margin"),  # sure, but too little to matter
        (-0.0525, "higher", 0.05, "undecided"),  # the interval reaches beyond the margin
        (0.0, "higher", 0.0, "undecided"),
    ],
)
def test_a_difference_counts_if_it_is_sure_and_matters(
    shift: float, direction: str, margin: float, verdict: str
) -> None:
    fields = {"psnr": {"direction": direction, "margin": margin}}
    found = only(
        evaluation("a", metric=fields, psnr=BASE), evaluation("b", metric=fields, psnr=BASE + NOISE + shift)
    )
    assert found.verdict == verdict
    assert found.difference == pytest.approx(shift + NOISE.mean())


def test_a_large_difference_of_few_samples_is_undecided() -> None:
    found = only(evaluation("a", psnr=BASE[:6]), evaluation("b", psnr=BASE[6:12]))
    assert abs(found.difference) > found.margin
    assert found.verdict == "undecided"


def test_rows_pair_by_key_in_whatever_order_they_come() -> None:
    order = np.random.default_rng(1).permutation(len(BASE))
    a = evaluation("a", psnr=BASE)
    straight = evaluation("b", psnr=BASE + NOISE)
    table = straight[1][PLACE].take(pa.array(order))
    assert compared(a, (straight[0], {PLACE: table})) == compared(a, straight)
    assert not table.equals(straight[1][PLACE])


def test_pairing_finds_what_samples_own_spread_hides() -> None:
    found = only(evaluation("a", psnr=BASE[:500]), evaluation("b", psnr=BASE[:500] + NOISE[:500] + 0.06))
    assert found.is_marked
    assert 1.96 * BASE[:500].std() * (2 / 500) ** 0.5 > 0.06  # it would not be significant unpaired


def test_each_kind_of_metric_has_its_own_test() -> None:
    right = (BASE > 29.5).astype(float)
    other = right.copy()
    other[:40] = 1 - other[:40]
    influence = NOISE - NOISE.mean()
    fields = {"fd": {"value": 12.0, "is_mean": False, "direction": "lower"}}
    after = {"fd": {"value": 11.0, "is_mean": False, "direction": "lower"}}
    comparison = compared(
        evaluation("a", metric=fields, top1=right, fd=influence, psnr=BASE),
        evaluation("b", metric=after, top1=other, fd=influence * 1.1, psnr=BASE + NOISE),
    )
    methods = {series.series.split("/")[-1]: series.method for series in comparison.series}
    assert methods == {"top1": "Newcombe, McNemar", "fd": "influence, t", "psnr": "t"}
    fd = next(series for series in comparison.series if series.series.endswith("fd"))
    assert (fd.difference, fd.verdict) == (-1.0, "better")
    assert fd.least_detectable_loss == pytest.approx(3.168 * 0.1 * NOISE.std() / 3000**0.5, rel=1e-2)


def test_samples_of_one_cluster_count_as_one() -> None:
    names = [f"image {number // 100}" for number in range(3000)]
    shared = np.repeat(np.random.default_rng(2).normal(0.1, 0.3, size=30), 100)
    a, b = {"psnr": BASE}, {"psnr": BASE + shared}
    apart = only(evaluation("a", a), evaluation("b", b))
    together = only(
        evaluation("a", a, table={"cluster": names}), evaluation("b", b, table={"cluster": names})
    )
    assert "30 clusters" in together.method
    assert (together.least_detectable_loss or 0) > 8 * (apart.least_detectable_loss or 1)
    other = ["image 99", *names[1:]]
    message = refusal(
        evaluation("a", a, table={"cluster": names}), evaluation("b", b, table={"cluster": other})
    )
    assert "is of the cluster image 0 in A and of image 99 in B" in message
    assert keys(1)[0].hex() in message


def test_p_values_are_adjusted_over_primary_series_and_over_the_others() -> None:
    generator = np.random.default_rng(3)
    first = {f"m{number}": generator.normal(size=2500) for number in range(12)}
    second = {
        name: values + generator.normal(0.0015 * number, 0.1, 2500)
        for number, (name, values) in enumerate(first.items())
    }
    primary = [f"scenes/plain/m{number}" for number in (2, 11, 1)]
    comparison = compared(evaluation("a", first), evaluation("b", second), primary)
    assert [series.series for series in comparison.series[:3]] == [
        f"scenes/plain/m{number}" for number in (1, 2, 11)
    ]
    assert [series.is_primary for series in comparison.series] == [True] * 3 + [False] * 9
    for group, adjust in ((comparison.series[:3], holm), (comparison.series[3:], benjamini_hochberg)):
        p_values = [series.p for series in group if series.p is not None]
        assert [series.adjusted_p for series in group] == adjust(p_values) != p_values
        assert {series.is_marked for series in group} == {True, False}
        for series in group:
            assert series.is_marked == ((series.adjusted_p or 0) <= 0.05)


def test_more_than_eight_series_need_primary_ones_by_name() -> None:
    many = {f"m{number}": BASE + number for number in range(9)}
    a, b = evaluation("a", many), evaluation("b", many)
    assert "9 series can be compared: name up to 8 primary ones" in refusal(a, b)
    names = list(a[0].metrics())
    assert "9 primary series are named" in refusal(a, b, names)
    assert "primary=scenes/plain/m77 is not in both evaluations" in refusal(a, b, ["scenes/plain/m77"])
    assert "did you mean scenes/plain/m1?" in refusal(a, b, ["scenes/plan/m1"])
    assert len(compared(a, b, names[:8]).series) == 9


def test_a_metric_without_scores_of_samples_is_shown_and_not_tested() -> None:
    fields = {"usage": {"per_sample": None}}
    a = evaluation("a", metric=fields, usage=BASE, psnr=BASE)
    b = evaluation("b", metric=fields, usage=BASE + 5, psnr=BASE)
    usage = next(series for series in compared(a, b).series if series.series.endswith("usage"))
    assert usage.difference == pytest.approx(5)
    assert (usage.low, usage.p, usage.adjusted_p, usage.verdict) == (None, None, None, "undecided")
    assert "has no interval" in refusal(a, b, ["scenes/plain/usage"])


def test_series_of_one_side_are_named() -> None:
    comparison = compared(evaluation("a", psnr=BASE, ssim=BASE), evaluation("b", psnr=BASE, lpips=BASE))
    assert comparison.only_first == ("scenes/plain/ssim",)
    assert comparison.only_second == ("scenes/plain/lpips",)


def test_keys_that_do_not_pair_are_counted_and_one_is_named() -> None:
    a, b = evaluation("a", psnr=BASE), evaluation("b", psnr=BASE[:2998])
    message = refusal(a, b)
    assert "2998 keys are in both, 2 only in A and 0 only in B" in message
    assert any(key.hex() in message for key in keys(3000)[2998:])


def test_a_key_that_ends_with_zeros_is_named_whole() -> None:
    zeros = {"key": pa.array([b"\1" + bytes(15), b"\2" + bytes(15)], pa.binary(16))}
    message = refusal(evaluation("a", table=zeros, psnr=BASE[:2]), evaluation("b", psnr=BASE[:2]))
    assert (b"\1" + bytes(15)).hex() in message


def test_a_key_that_comes_twice_is_refused() -> None:
    twice = pa.array([*keys(2999), keys(1)[0]], pa.binary(16))
    message = refusal(evaluation("a", psnr=BASE), evaluation("b", table={"key": twice}, psnr=BASE))
    assert f"of B have 1 keys more than once, such as {keys(1)[0].hex()}" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"view": {"resize": "bilinear", "sizes": [256, 256]}, "batch": 32},
            "protocol_content.view.resize is 'bicubic' in A and 'bilinear' in B",
        ),
        (
            {"view": {"resize": "bicubic", "sizes": [256, 224]}, "batch": 32},
            "protocol_content.view.sizes[1] is 256 in A and 224 in B",
        ),
        ({"view": PROTOCOL["view"]}, "protocol_content.batch is 32 in A and absent in B"),
        (PROTOCOL, "protocol_hash is"),
    ],
)
def test_protocols_that_differ_are_refused_by_the_field(content: dict[str, Any], message: str) -> None:
    other = {"protocol_content": content, "protocol_hash": digest("other")}
    assert message in refusal(evaluation("a", psnr=BASE), evaluation("b", result=other, psnr=BASE))


def test_sets_that_differ_are_refused_by_their_hashes() -> None:
    message = refusal(
        evaluation("a", psnr=BASE), evaluation("b", result={"set_hash": digest("other")}, psnr=BASE)
    )
    assert f"set_hash is {digest('set')[:12]} in A and {digest('other')[:12]} in B" in message


def test_evaluations_without_a_common_set_are_refused() -> None:
    message = refusal(evaluation("a", psnr=BASE), evaluation("b", result={"protocol": "clean"}, psnr=BASE))
    assert "A has scenes/plain, B has scenes/clean" in message


def test_a_metric_defined_in_two_ways_is_refused() -> None:
    b = evaluation("b", metric={"psnr": {"direction": "lower"}}, psnr=BASE)
    assert "direction is 'higher' in A and 'lower' in B" in refusal(evaluation("a", psnr=BASE), b)


def test_a_newer_summary_is_refused() -> None:
    b = evaluation("b", summary={"schema_version": SCHEMA + 1}, psnr=BASE)
    assert f"schema_version={SCHEMA + 1}" in refusal(evaluation("a", psnr=BASE), b)


def test_scores_that_are_no_numbers_are_refused_by_their_column() -> None:
    wrong = BASE.copy()
    wrong[7] = np.nan
    b = evaluation("b", table={"psnr": wrong}, psnr=BASE)
    assert "column scenes/plain/psnr of B has 1 values that are no numbers" in refusal(
        evaluation("a", psnr=BASE), b
    )
    missing = pa.array([None, *BASE[1:]])
    b = evaluation("b", table={"psnr": missing}, psnr=BASE)
    assert "column scenes/plain/psnr of B has 1 values" in refusal(evaluation("a", psnr=BASE), b)


def test_scores_of_another_evaluation_are_refused() -> None:
    b = evaluation("b", table={"psnr": BASE + 1}, psnr=BASE)
    assert "they are of two evaluations" in refusal(evaluation("a", psnr=BASE), b)
    b = evaluation("b", metric={"psnr": {"n": 17}}, psnr=BASE)
    assert "n=17 samples and the scores have 3000" in refusal(evaluation("a", psnr=BASE), b)
    b = evaluation("b", psnr=BASE)
    assert "B has no scores of scenes/plain" in refusal(evaluation("a", psnr=BASE), (b[0], {}))


def test_samples_that_lost_most_come_first_and_equal_ones_by_key() -> None:
    after = BASE + 1.0
    after[[5, 900, 17]] = BASE[[5, 900, 17]] - [3.0, 4.0, 3.0]
    a, b = evaluation("a", psnr=BASE), evaluation("b", psnr=after)
    lost = most_lost(*a, *b, "scenes/plain/psnr")
    equal = sorted([keys(1000)[5], keys(1000)[17]])
    assert [sample.key for sample in lost] == [keys(1000)[900], *equal]
    assert [sample.loss for sample in lost] == pytest.approx([4, 3, 3])
    assert (lost[0].first, lost[0].second) == (BASE[900], after[900])
    assert most_lost(*a, *b, "scenes/plain/psnr", n=1) == lost[:1]
    lower = {"psnr": {"direction": "lower"}}
    risen = most_lost(
        *evaluation("a", metric=lower, psnr=BASE),
        *evaluation("b", metric=lower, psnr=after),
        "scenes/plain/psnr",
    )
    assert len(risen) == 20
    assert {round(sample.loss, 9) for sample in risen} == {1.0}
    with pytest.raises(UserError, match="series=psnr is not in both"):
        most_lost(*a, *b, "psnr")


def test_the_same_comparison_is_the_same_record() -> None:
    a, b = evaluation("a", psnr=BASE[:50]), evaluation("b", psnr=BASE[:50] + NOISE[:50])
    first = compared(a, b)
    assert first.to_bytes() == compared(a, b).to_bytes()
    assert Comparison.from_bytes(first.to_bytes()) == first


def test_lines_are_aligned_and_say_what_was_found() -> None:
    fields = {"psnr": {"unit": "dB"}, "usage": {"per_sample": None}}
    lines = comparison_lines(
        compared(
            evaluation("a", metric=fields, psnr=BASE, usage=BASE),
            evaluation("b", metric=fields, psnr=BASE + NOISE - 0.2, usage=BASE * 2),
        )
    )
    head = next(line for line in lines if line.startswith("series"))
    rows = [line for line in lines if line.startswith("scenes/")]
    assert [line[head.index("verdict") :] for line in rows] == ["worse", "undecided"]
    after = BASE + NOISE - 0.2
    shown = [f"{BASE.mean():.4f}", f"{after.mean():.4f}", f"{after.mean() - BASE.mean():+.4f}"]
    assert rows[0].split()[:6] == ["scenes/plain/psnr", "(dB)", "3000", *shown]
    assert {line.index("3000") + len("3000") for line in rows} == {head.index(" n ") + 2}
    assert all(len(line) <= 160 for line in lines)


def test_markdown_has_a_row_for_each_series_with_equal_cells() -> None:
    text = comparison_markdown(
        compared(evaluation("a|b", psnr=BASE, ssim=BASE), evaluation("b", psnr=BASE - 1, ssim=BASE))
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {11}
    assert "a\\|b" in text
