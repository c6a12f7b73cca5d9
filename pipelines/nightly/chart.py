"""The night chart: is tonight unlike other nights?

A night is judged against all earlier ones of its protocol and segment, by its self-starting residual. Better
and worse nights are treated alike. Nights alarm by any of three rules, each only if the shift is larger than
the metric's margin: a CUSUM above its threshold, a suspected night that the next one confirms, or one night
that is certain. While an alarm lasts, its nights do not enter the reference. It ends when the nights are back
at the old level, or when a person acknowledges it: then its nights begin a new segment. An improvement that
lasts begins one by itself.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction
from dualtoken.pipelines.nightly.baseline import BaselineWatch
from dualtoken.pipelines.nightly.excursion import Excursion, Night
from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import History, Point, Ruleset

__all__ = ["History", "Judged", "Point", "Ruleset", "State", "judge"]

State = Literal["too_few", "ok", "improved", "suspected", "regressed", "drifted"]
"""What a night is. `drifted` is a loss that no single night shows; `suspected` waits for the next night."""
WORSE, BETTER = -1, 1


class Judged(NamedTuple):
    """What a night of a metric comes to."""

    state: State
    residual: float | None
    """Deviation from the earlier nights as a standard normal deviate, negative if worse; None without them."""
    cusum: float
    """CUSUM of worse nights after this one; 0 after an alarm."""
    reference_low: float | None
    """Lower end of the values that are not suspected, in the metric's own unit."""
    reference_high: float | None
    segment: str
    """Night that the current segment starts on."""
    reason: str
    """One sentence for people."""
    headroom: float | None = None
    """What may be lost until the night is worse than the baseline by more than the margin."""
    cusum_better: float = 0.0
    """CUSUM of better nights, likewise."""
    num_reference: int = 0
    """Earlier nights that this one was judged against."""


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
    night's protocol. `acknowledged` are nights whose step or value a person accepted: from then on, the nights
    since the step began are the reference. Raises `UserError` for values that are no numbers and for nights
    out of order.
    """
    _check(points, margin, baseline)
    sign = 1 if direction == "higher" else -1
    watch = None
    if baseline is not None:
        watch = BaselineWatch(sign * baseline, margin, rules)
    segments: dict[str, _Segment] = {}
    judged: list[Judged] = []
    for point in points:
        segment = segments.get(point.protocol_hash)
        if segment is None:
            segment = segments[point.protocol_hash] = _Segment(point.night, margin, rules)
        value = sign * point.value
        reference = segment.reference
        start = segment.start
        verdict = segment.judge(point.night, value)
        if watch is not None and point.protocol_hash == points[-1].protocol_hash:
            verdict = _against_baseline(verdict, watch, value, reference)
        judged.append(_in_own_unit(verdict, start, sign))
        if point.night in acknowledged:
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


@dataclass(slots=True)
class _Alarm:
    """A step or drift that is not over."""

    side: int
    state: State
    start: str
    depth: float
    """Mean deviation of the nights that alarmed, positive to the alarm's side."""
    nights: Reference
    """Values of its nights."""
    shift: float
    """Their mean less the reference's, positive to the alarm's side."""
    what: str
    """What alarmed."""
    evidence: float = 0.0
    """Logarithm of the odds that the nights since are at the old level."""

    def goes_on(self, night: Night, rules: Ruleset) -> bool:
        """Take one more night in: a sequential probability ratio test, which restarts at even odds."""
        deviation = self.side * night.residual
        deviation = max(-rules.clip, min(deviation, rules.clip + self.depth))
        for_old_level = self.depth * (self.depth / 2 - deviation)
        self.evidence = max(0.0, self.evidence + for_old_level)
        return self.evidence < math.log(rules.recovery_odds)


@dataclass(slots=True)
class _Segment:
    """Nights of one protocol at one level. Values are signed so that higher is better."""

    start: str
    margin: float
    rules: Ruleset
    reference: Reference = Reference()
    excursions: dict[int, Excursion] = field(
        default_factory=lambda: {WORSE: Excursion(), BETTER: Excursion()}
    )
    suspect: Night | None = None
    """The night before, if it was suspected; it is not in the reference yet."""
    alarm: _Alarm | None = None

    def judge(self, name: str, value: float) -> Judged:
        """Judge a night and learn from it."""
        known = self.reference
        if known.num < self.rules.least_nights:
            self.reference = known.add(value)
            reason = f"Only {known.num} of {self.rules.least_nights} nights are there to compare it with."
            return Judged("too_few", None, 0.0, None, None, self.start, reason, num_reference=known.num)
        night = Night(name, value, known.residual(value))
        state, reason = self._state(night)
        low, high = known.band(-self.rules.suspect)
        return Judged(
            state=state,
            residual=night.residual,
            cusum=self.excursions[WORSE].cusum,
            reference_low=low,
            reference_high=high,
            segment=self.start,
            reason=reason,
            cusum_better=self.excursions[BETTER].cusum,
            num_reference=known.num,
        )

    def accept(self, name: str, value: float) -> None:
        """Begin a new segment: with the nights of the alarm, or with this night where there is none."""
        nights = Reference().add(value)
        start = name
        if self.alarm is not None:
            nights = self.alarm.nights
            start = self.alarm.start
        self._begin(start, nights)

    def _begin(self, start: str, nights: Reference) -> None:
        self.start = start
        self.reference = nights
        self.suspect = None
        self._at_rest()

    def _at_rest(self) -> None:
        self.alarm = None
        self.excursions = {WORSE: Excursion(), BETTER: Excursion()}

    def _state(self, night: Night) -> tuple[State, str]:
        back = ""
        if self.alarm is not None:
            if self.alarm.goes_on(night, self.rules):
                return self._going_on(self.alarm, night)
            back = f" It is back at the level before {self.alarm.start}."
            self._at_rest()
        for side, excursion in self.excursions.items():
            self.excursions[side] = excursion.grown(night, side, self.reference, self.rules)
        for side in (WORSE, BETTER):
            alarm = self._fired(night, side)
            if alarm is not None:
                self._at_rest()
                self.suspect = None
                self.alarm = alarm
                return alarm.state, f"{_word(side)} by {alarm.shift:.4g} {alarm.what}."
        return self._quiet(night, back)

    def _going_on(self, alarm: _Alarm, night: Night) -> tuple[State, str]:
        alarm.nights = alarm.nights.add(night.value)
        shift = alarm.side * (alarm.nights.mean - self.reference.mean)
        reason = (
            f"{_word(alarm.side)} by {shift:.4g} on average since {alarm.start}, {alarm.nights.num} nights."
        )
        if alarm.side == BETTER and alarm.nights.num >= self.rules.least_nights:
            reason = f"{reason} These nights are the reference from now on."
            self._begin(alarm.start, alarm.nights)
        return alarm.state, reason

    def _fired(self, night: Night, side: int) -> _Alarm | None:
        """Return the alarm of the first rule that fires, or None."""
        deviation = side * night.residual
        rules = self.rules
        level = self.reference.mean
        state: State = "improved" if side == BETTER else "regressed"
        one = Reference().add(night.value)
        if deviation > -rules.certain and side * (night.value - level) > self.margin:
            shift = side * (night.value - level)
            return _Alarm(side, state, night.name, deviation, one, shift, "in one night")
        if self._confirms(night, side):
            assert self.suspect is not None
            nights = one.add(self.suspect.value)
            shift = side * (nights.mean - level)
            if shift > self.margin:
                depth = (deviation + side * self.suspect.residual) / 2
                return _Alarm(side, state, self.suspect.name, depth, nights, shift, "on two nights in a row")
        return self._crept(side, state)

    def _confirms(self, night: Night, side: int) -> bool:
        if self.suspect is None or side * self.suspect.residual <= 0:
            return False
        return side * night.residual > -self.rules.confirm

    def _crept(self, side: int, state: State) -> _Alarm | None:
        """Return the alarm of the CUSUM, or None; takes its nights out of the reference."""
        grown = self.excursions[side]
        if grown.cusum <= self.rules.threshold:
            return None
        shift = side * (grown.nights.mean - grown.before.mean)
        if shift <= self.margin:
            return None
        self.reference = grown.before
        what = f"on average since {grown.start}"
        if side == WORSE and grown.farthest <= -self.rules.suspect:
            state = "drifted"
            what = f"{what}, though no single night stands out"
        return _Alarm(side, state, grown.start, grown.total / grown.nights.num, grown.nights, shift, what)

    def _quiet(self, night: Night, back: str) -> tuple[State, str]:
        """Learn from a night without alarm; one that stands out waits for the next."""
        if self.suspect is not None:
            self.reference = self.reference.add(self.suspect.value)
            self.suspect = None
        shift = night.value - self.reference.mean
        if abs(night.residual) <= -self.rules.suspect or abs(shift) <= self.margin:
            reason = f"Like the {self.reference.num} nights before it.{back}"
            self.reference = self.reference.add(night.value)
            return "ok", reason
        self.suspect = night
        side = WORSE if shift < 0 else BETTER
        reason = f"{_word(side)} by {abs(shift):.4g}; the next night decides.{back}"
        return ("suspected" if side == WORSE else "ok"), reason


def _word(side: int) -> str:
    return "Worse" if side == WORSE else "Better"
