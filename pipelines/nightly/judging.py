"""Whether a night of a metric is unlike the nights before it.

A night is judged against all earlier ones of its protocol and segment, by its self-starting residual. Better
and worse nights are treated alike. Nights alarm by any of three rules, each only if the shift is larger than
the metric's margin: a CUSUM above its threshold, a suspected night that the next one confirms, or one night
that is certain. While an alarm lasts, its nights do not enter the reference. It ends when the nights are back
at the old level, or when a person acknowledges it: then its nights begin a new segment. An improvement that
lasts begins one by itself.
"""

import math
from collections.abc import Collection, Sequence

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction
from dualtoken.pipelines.nightly.baseline import BaselineWatch
from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import Judged, Point, Ruleset
from dualtoken.pipelines.nightly.segment import Segment


def judge(
    points: Sequence[Point],
    direction: Direction,
    margin: float,
    rules: Ruleset,
    baseline: float | None = None,
    acknowledged: Collection[str] = (),
) -> list[Judged]:
    """Judge each night of a metric by the nights before it.

    `margin` is the least shift that matters. `baseline` is a value that a person pinned, of the newest
    night's protocol. `acknowledged` are nights whose step or value a person accepted: from then on, the
    nights since the step began are the reference. Raises `UserError` for values that are no numbers and for
    nights out of order.
    """
    _check(points, margin, baseline)
    sign = 1 if direction == "higher" else -1
    watch = None
    if baseline is not None:
        watch = BaselineWatch(sign * baseline, margin, rules)
    segments: dict[str, Segment] = {}
    judged: list[Judged] = []
    for point in points:
        segment = segments.get(point.protocol_hash)
        if segment is None:
            segment = segments[point.protocol_hash] = Segment(point.night, margin, rules)
        value = sign * point.value
        reference = segment.reference
        start = segment.start
        own = segment.judge(point.night, value)
        verdict = own
        if watch is not None and point.protocol_hash == points[-1].protocol_hash:
            verdict = _against_baseline(own, watch, value, reference)
        judged.append(_in_own_unit(verdict, start, sign))
        if point.night in acknowledged:
            if verdict.state == own.state:  # otherwise it is the baseline alone that alarms
                segment.accept(point.night, value)
            if watch is not None:
                watch.acknowledge()
    return judged


def _check(points: Sequence[Point], margin: float, baseline: float | None) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"margin={margin}: set it to 0 or more")
    if baseline is not None and not math.isfinite(baseline):
        raise UserError(f"baseline={baseline}: set it to a number")
    before = ""
    for point in points:
        if not math.isfinite(point.value):
            raise UserError(
                f"the night {point.night} has the value {point.value}: leave it out, it has failed"
            )
        if point.night <= before:
            raise UserError(f"the night {point.night} comes after {before}: give each night once, in order")
        before = point.night


def _against_baseline(verdict: Judged, watch: BaselineWatch, value: float, reference: Reference) -> Judged:
    """Add what the baseline says; it is heard where the chart itself has no alarm."""
    headroom = watch.headroom(value)
    verdict = verdict._replace(headroom=headroom)
    found = watch.look(value, reference)
    if found == "fine" or verdict.state in {"regressed", "drifted"}:
        return verdict
    if found == "worse":
        reason = f"Worse than the baseline by {-headroom:.4g} more than the margin allows."
        return verdict._replace(state="regressed", reason=reason)
    reason = (
        f"Worse than the baseline by {-headroom:.4g} more than the margin allows; the next night decides."
    )
    return verdict._replace(state="suspected", reason=reason)


def _in_own_unit(verdict: Judged, start: str, sign: int) -> Judged:
    low, high = verdict.reference_low, verdict.reference_high
    if sign < 0 and low is not None and high is not None:
        low, high = -high, -low
    return verdict._replace(segment=start, reference_low=low, reference_high=high)
