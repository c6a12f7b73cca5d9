"""What a measured night comes to: can it be compared, did the evaluator move, what does the chart say."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from dualtoken.pipelines.config.nightly import CANARY, NightlySpec
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.evaluation.deciding_packages import other_text_reader
from dualtoken.pipelines.evaluation.summary import Environment
from dualtoken.pipelines.nightly.contracts import Chart, Point
from dualtoken.pipelines.nightly.history import Snapshot
from dualtoken.pipelines.nightly.records import (
    Confirmation,
    MeasuredSubject,
    NightRecord,
    SeriesValue,
    SeriesVerdict,
    VerdictRecord,
    VerdictState,
)

LOUD: frozenset[VerdictState] = frozenset({"suspected", "regressed", "drifted", "evaluator-changed"})
"""States that a night is measured once more for."""
_NOT_IN_TRENDS: frozenset[VerdictState] = frozenset({"evaluator-changed", "incomparable"})
"""States whose numbers are shown and judge no other night, unless a person accepts them."""
_FROM_WORST: tuple[VerdictState, ...] = ("regressed", "drifted", "suspected", "improved")


class Reference(NamedTuple):
    """The night that another one is compared with."""

    night: NightRecord
    baseline: int | None
    """Number of the baseline that pins it; None where it is just the first night."""


class _Opinion(NamedTuple):
    """State of a night, and why."""

    state: VerdictState
    reason: str
    series: dict[str, SeriesVerdict]


def judge_night(
    snapshot: Snapshot,
    spec: NightlySpec,
    night: NightRecord,
    chart: Chart,
    now: str,
    confirmation: Confirmation | None = None,
) -> VerdictRecord:
    """Judge a night by those before it; `confirmation` is its second measurement, where it had one."""
    reference = find_reference(snapshot, spec, night.night)
    opinion = _opinion(snapshot, spec, night, chart, reference)
    if confirmation is not None and confirmation.differing and opinion.state in LOUD:
        reason = f"measured twice, {', '.join(confirmation.differing)} came out differently"
        opinion = opinion._replace(state="evaluator-changed", reason=f"{reason}; first: {opinion.reason}")
    changes: tuple[str, ...] = ()
    if reference is not None:
        changes = tuple(environment_changes(reference.night, night))
    return VerdictRecord(
        night=night.night,
        ruleset=chart.version,
        state=opinion.state,
        reason=opinion.reason,
        series=opinion.series,
        reference=reference.night.night if reference else None,
        baseline=reference.baseline if reference else None,
        changes=changes,
        confirmation=confirmation,
        judged_at=now,
    )


def find_reference(snapshot: Snapshot, spec: NightlySpec, night: str) -> Reference | None:
    """Return the newest baseline up to a night, or else the first night before it that is whole."""
    for number, baseline in reversed(snapshot.baselines):
        pinned = snapshot.files(baseline.night).night
        if baseline.night <= night and pinned is not None:
            return Reference(pinned, number)
    for name, files in snapshot.nights.items():
        found = files.night
        if name >= night:
            break
        if found is not None and not found.missing and not found.backfilled and not _noted(spec, found):
            return Reference(found, None)
    return None


def _noted(spec: NightlySpec, night: NightRecord) -> list[str]:
    """Return the notes that make a night unlike others."""
    if not spec.strict:
        return []
    return [f"{name}: {note}" for name, subject in night.subjects.items() for note in subject.notes]


def _opinion(
    snapshot: Snapshot, spec: NightlySpec, night: NightRecord, chart: Chart, reference: Reference | None
) -> _Opinion:
    if night.missing:
        return _Opinion("incomplete", f"without {', '.join(night.missing)}", {})
    notes = _noted(spec, night)
    if notes:
        return _Opinion("incomparable", "; ".join(notes), {})
    if reference is not None and reference.night.night != night.night:
        reader = _reader_change(reference.night, night)
        if reader is not None:
            return _Opinion("evaluator-changed", reader, {})
        unlike = list(protocol_changes(reference.night, night))
        if unlike:
            return _Opinion("incomparable", f"{'; '.join(unlike)} (since {reference.night.night})", {})
        reason = _canary_change(reference.night, night)
        if reason is not None:
            return _Opinion("evaluator-changed", reason, {})
    series = dict(_judged(snapshot, spec, night, chart, reference))
    return _of_series(series)


def _of_series(series: dict[str, SeriesVerdict]) -> _Opinion:
    for state in _FROM_WORST:
        found = [name for name, verdict in series.items() if verdict.state == state]
        if found:
            first = f"{found[0]}: {series[found[0]].reason}"
            rest = f" (and {pluralized(len(found) - 1, 'more')})" if len(found) > 1 else ""
            return _Opinion(state, first + rest.replace("mores", "more"), series)
    few = sum(verdict.state == "too_few" for verdict in series.values())
    reason = f"{few} of {len(series)} series have too few nights yet" if few else ""
    return _Opinion("ok", reason, series)


def protocol_changes(before: NightRecord, after: NightRecord) -> Iterator[str]:
    """Name what makes two nights incomparable: sets and protocols of another hash, by field where known."""
    told: set[str] = set()
    for name, subject in after.subjects.items():
        earlier = before.subjects.get(name)
        if earlier is None:
            continue
        for series, value in subject.values.items():
            known = earlier.values.get(series)
            if known is None:
                continue
            set_name, protocol, _ = series.split("/", 2)
            if known.set_hash != value.set_hash and set_name not in told:
                told.add(set_name)
                yield f"the set {set_name} changed"
            if known.protocol_hash != value.protocol_hash and protocol not in told:
                told.add(protocol)
                fields = _changed_fields(
                    earlier.protocols.get(protocol, {}), subject.protocols.get(protocol, {})
                )
                yield f"the protocol {protocol} changed{fields}"


def _changed_fields(before: dict[str, Any], after: dict[str, Any]) -> str:
    changes: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            changes.append(f"{key} {old} to {new}")
    return f" in {', '.join(changes[:3])}" if changes else ""


def _canary_change(before: NightRecord, after: NightRecord) -> str | None:
    """Return why the canary's scores show another evaluator, or None where they are the same bits."""
    first, second = before.subjects.get(CANARY), after.subjects.get(CANARY)
    if first is None or second is None or first.scores == second.scores:
        return None
    if first.digest != second.digest:
        return f"the canary is another model than on {before.night}"
    changed = [name for name, value in second.values.items() if not _is_same(first.values.get(name), value)]
    what = f"in {', '.join(changed[:3])}" if changed else "in single samples"
    return f"the canary scores otherwise than on {before.night}, {what}"


def _reader_change(before: NightRecord, after: NightRecord) -> str | None:
    """Return what reads text in images other than before, which the canary's pictures do not show."""
    for name, subject in after.subjects.items():
        earlier = before.subjects.get(name)
        if earlier is None:
            continue
        change = other_text_reader(earlier.environment.packages, subject.environment.packages)
        if change is not None:
            return f"text is read otherwise than on {before.night}: {change}"
    return None


def _is_same(before: SeriesValue | None, after: SeriesValue) -> bool:
    return before is not None and before.value == after.value


def environment_changes(before: NightRecord, after: NightRecord) -> Iterator[str]:
    """Name what differs between the environments of two nights."""
    for name, subject in after.subjects.items():
        earlier = before.subjects.get(name)
        if earlier is not None:
            yield from _differences(earlier.environment, subject.environment)
            return


def _differences(before: Environment, after: Environment) -> Iterator[str]:
    for key in ("code", "commit", "device", "machine"):
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            yield f"{key}: {old} to {new}"
    for package in sorted(before.packages.keys() | after.packages.keys()):
        old, new = before.packages.get(package, "none"), after.packages.get(package, "none")
        if old != new:
            yield f"{package}: {old} to {new}"


def _judged(
    snapshot: Snapshot,
    spec: NightlySpec,
    night: NightRecord,
    chart: Chart,
    reference: Reference | None,
) -> Iterator[tuple[str, SeriesVerdict]]:
    pinned = {baseline.night for _, baseline in snapshot.baselines}
    for subject in spec.subjects:
        for series in spec.primary:
            value = night.subjects[subject].values[series]
            name = f"{subject}/{series}"
            acknowledged = pinned | {ack.night for ack in snapshot.acks if ack.series == name}
            judgement = chart.judge(
                series_points(snapshot, subject, series, night),
                value.direction,
                value.margin,
                chart.rules,
                _pinned_value(reference, subject, series, value),
                acknowledged,
            )[-1]
            yield (
                name,
                SeriesVerdict(
                    state=judgement.state, reason=judgement.reason, chart=dict(judgement._asdict())
                ),
            )


def _pinned_value(reference: Reference | None, subject: str, series: str, value: SeriesValue) -> float | None:
    """Return the value that a person pinned, if it is of tonight's set and protocol."""
    if reference is None or reference.baseline is None or subject not in reference.night.subjects:
        return None
    pinned = reference.night.subjects[subject].values.get(series)
    if pinned is None or protocol_key(pinned) != protocol_key(value):
        return None
    return pinned.value


def series_points(snapshot: Snapshot, subject: str, series: str, until: NightRecord) -> list[Point]:
    """Return a series of the nights up to one, that night included, without nights that tell nothing."""
    points: list[Point] = []
    pinned = {baseline.night for _, baseline in snapshot.baselines}
    for name, files in snapshot.nights.items():
        if name >= until.night:
            break
        if files.night is None or (name not in pinned and _is_out(files.verdicts.values())):
            continue
        points += _points(files.night, subject, series)
    return points + _points(until, subject, series)


def is_in_trends(snapshot: Snapshot, night: str) -> bool:
    """Tell whether a night may be compared with others: a person accepted it, or nothing of it is odd."""
    is_pinned = any(baseline.night == night for _, baseline in snapshot.baselines)
    return is_pinned or not _is_out(snapshot.files(night).verdicts.values())


def _is_out(verdicts: Any) -> bool:  # noqa: ANN401
    return any(verdict.state in _NOT_IN_TRENDS for verdict in verdicts)


def _points(night: NightRecord, subject: str, series: str) -> list[Point]:
    measured: MeasuredSubject | None = night.subjects.get(subject)
    value = measured.values.get(series) if measured else None
    if value is None:
        return []
    return [Point(night.night, value.value, protocol_key(value))]


def protocol_key(value: SeriesValue) -> str:
    """Hash the set and the protocol that a value is of."""
    return hashlib.sha256(f"{value.set_hash} {value.protocol_hash}".encode()).hexdigest()
