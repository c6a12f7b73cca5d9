"""Two evaluations side by side: what differs, how sure that is, and whether it matters.

Samples are paired by key. Differences are B less A; `better` and `worse` say how B is. The primary series,
named beforehand, share an error of 5 % (Holm). Of the others, 5 % of the marked ones are expected to be wrong
(Benjamini-Hochberg).
"""

import difflib
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import (
    SIGNIFICANT,
    ComparedSeries,
    ComparedSubject,
    Comparison,
    Verdict,
)
from dualtoken.pipelines.evaluation.multiplicity import benjamini_hochberg, holm
from dualtoken.pipelines.evaluation.paired_statistics import (
    influence_difference,
    paired_difference,
    paired_shares,
)
from dualtoken.pipelines.evaluation.pairing import (
    KEY_BYTES,
    Pair,
    PairedSamples,
    Scores,
    check_value,
    column_of,
    pair_samples,
    paired_metrics,
    paired_results,
    scores_of,
)
from dualtoken.pipelines.evaluation.statistics import Estimate, Values, checked, least_detectable_loss
from dualtoken.pipelines.evaluation.summary import Direction, EvaluationSummary

MOST_PRIMARY = 8
"""Primary series, at most: with more of them, each finds too little."""

Tables = tuple[pa.Table, pa.Table]
"""Score tables of A and B."""


class LostSample(NamedTuple):
    """A sample that is worse in B than in A."""

    key: bytes
    first: float
    second: float
    loss: float
    """Positive."""


def compare(
    a: EvaluationSummary,
    a_scores: Scores,
    b: EvaluationSummary,
    b_scores: Scores,
    primary: Sequence[str] | None = None,
) -> Comparison:
    """Compare two evaluations; deterministic.

    `primary` names up to 8 series; without it, all are primary if there are no more. Raises `UserError` where
    sets, protocols or keys are not the same, and for scores that are no numbers.
    """
    pairs: list[Pair] = []
    estimates: list[Estimate] = []
    for first, second in paired_results(a, b):
        tables = scores_of(a_scores, first, "A"), scores_of(b_scores, second, "B")
        samples = pair_samples(*tables, f"{first.set_name}/{first.protocol}")
        for pair in paired_metrics(first, second):
            pairs.append(pair)
            estimates.append(_estimate(pair, tables, samples))
    names = [pair.series for pair in pairs]
    chosen = _primary(names, estimates, primary)
    adjusted = _adjusted(names, estimates, chosen)
    compared: list[ComparedSeries] = []
    for pair, estimate in zip(pairs, estimates, strict=True):
        is_primary = pair.series in chosen
        compared.append(_compared(pair, estimate, adjusted.get(pair.series), is_primary=is_primary))
    compared.sort(key=lambda series: not series.is_primary)  # stable
    return Comparison(
        first=_subject(a),
        second=_subject(b),
        series=tuple(compared),
        only_first=tuple(name for name in a.metrics() if name not in names),
        only_second=tuple(name for name in b.metrics() if name not in names),
    )


def most_lost(
    a: EvaluationSummary,
    a_scores: Scores,
    b: EvaluationSummary,
    b_scores: Scores,
    series: str,
    n: int = 20,
) -> list[LostSample]:
    """Return the samples that lost most by a series, the worst first; equal losses are in order of key."""
    for first, second in paired_results(a, b):
        for pair in paired_metrics(first, second):
            if pair.series == series:
                tables = scores_of(a_scores, first, "A"), scores_of(b_scores, second, "B")
                samples = pair_samples(*tables, f"{first.set_name}/{first.protocol}")
                return _most_lost(pair, tables, samples, n)
    raise UserError(f"series={series} is not in both evaluations: name one that is")


def _most_lost(pair: Pair, tables: Tables, samples: PairedSamples, num: int) -> list[LostSample]:
    samples = samples.scored(pair, *tables)
    before, after = _columns(pair, tables, samples)
    gain = after - before if pair.first.direction == "higher" else before - after
    lost: list[LostSample] = []
    for row in np.argsort(gain, kind="stable")[:num]:
        if gain[row] < 0:
            key = bytes(samples.keys[row]).ljust(KEY_BYTES, b"\0")
            lost.append(LostSample(key, float(before[row]), float(after[row]), float(-gain[row])))
    return lost


def _columns(pair: Pair, tables: Tables, samples: PairedSamples) -> tuple[Values, Values]:
    if not pair.has_scores:
        raise UserError(f"{pair.series} has no score of each sample: name another series")
    rows = samples.first_rows, samples.second_rows
    columns: list[Values] = []
    for side, table, order, value in zip("AB", tables, rows, (pair.first, pair.second), strict=True):
        assert value.per_sample is not None
        name = f"{pair.series} of {side}"
        column = checked(column_of(table, value.per_sample, order, name), name)
        check_value(value, column, name)
        columns.append(column)
    return columns[0], columns[1]


def _estimate(pair: Pair, tables: Tables, samples: PairedSamples) -> Estimate:
    """Return the difference with its error."""
    difference = pair.second.value - pair.first.value
    if not pair.has_scores:
        return Estimate(difference, pair.second.n, None, None, None, "no interval: no score of each sample")
    samples = samples.scored(pair, *tables)
    before, after = _columns(pair, tables, samples)
    clusters, name = samples.clusters, pair.series
    if not pair.first.is_mean:
        return influence_difference(pair.first.value, pair.second.value, before, after, clusters, name=name)
    if clusters is None and _is_binary(before) and _is_binary(after):
        return paired_shares(before, after, name=name)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    return paired_difference(before, after, clusters, seed=seed, name=name)


def _is_binary(column: Values) -> bool:
    return bool(((column == 0) | (column == 1)).all())


def _primary(names: Sequence[str], estimates: Sequence[Estimate], asked: Sequence[str] | None) -> set[str]:
    testable = [name for name, estimate in zip(names, estimates, strict=True) if estimate.p is not None]
    if asked is None:
        if len(testable) > MOST_PRIMARY:
            raise UserError(
                f"{len(testable)} series can be compared: name up to {MOST_PRIMARY} primary ones of them, "
                f"such as {testable[0]}"
            )
        return set(testable)
    if len(set(asked)) > MOST_PRIMARY:
        raise UserError(f"{len(set(asked))} primary series are named: name up to {MOST_PRIMARY}")
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1) or names[:1]
            raise UserError(f"primary={name} is not in both evaluations: did you mean {near[0]}?")
        if name not in testable:
            raise UserError(f"primary={name} has no interval, so it cannot be tested: name another series")
    return set(asked)


def _adjusted(names: Sequence[str], estimates: Sequence[Estimate], primary: set[str]) -> dict[str, float]:
    p_values = {name: found.p for name, found in zip(names, estimates, strict=True) if found.p is not None}
    chosen = [name for name in p_values if name in primary]
    others = [name for name in p_values if name not in primary]
    adjusted = dict(zip(chosen, holm([p_values[name] for name in chosen]), strict=True))
    marks = benjamini_hochberg([p_values[name] for name in others])
    return {**adjusted, **dict(zip(others, marks, strict=True))}


def _compared(pair: Pair, estimate: Estimate, adjusted: float | None, *, is_primary: bool) -> ComparedSeries:
    margin = max(pair.first.margin, pair.second.margin)
    is_marked = adjusted is not None and adjusted <= SIGNIFICANT
    return ComparedSeries(
        series=pair.series,
        is_primary=is_primary,
        n=estimate.n,
        first=pair.first.value,
        second=pair.second.value,
        difference=pair.second.value - pair.first.value,
        low=estimate.low,
        high=estimate.high,
        method=estimate.method,
        p=estimate.p,
        adjusted_p=adjusted,
        is_marked=is_marked,
        direction=pair.first.direction,
        unit=pair.first.unit,
        margin=margin,
        least_detectable_loss=least_detectable_loss(estimate),
        verdict=_verdict(estimate, pair.first.direction, margin, is_marked=is_marked),
    )


def _verdict(estimate: Estimate, direction: Direction, margin: float, *, is_marked: bool) -> Verdict:
    """Say what a difference is: it must be both sure and larger than the margin to count."""
    if estimate.low is None or estimate.high is None:
        return "undecided"
    if -margin <= estimate.low and estimate.high <= margin:
        return "equal within margin"
    if not is_marked or abs(estimate.value) <= margin:
        return "undecided"
    return "better" if (estimate.value > 0) == (direction == "higher") else "worse"


def _subject(summary: EvaluationSummary) -> ComparedSubject:
    return ComparedSubject(
        evaluation=summary.evaluation,
        name=summary.subject.name,
        digest=summary.subject.digest,
        measured_at=summary.measured_at,
        notes=summary.notes,
    )
