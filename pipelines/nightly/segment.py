"""The nights of one protocol at one level, and the alarms that they raise."""

from dataclasses import dataclass, field

from dualtoken.pipelines.nightly.episode import Alarm, Episode, Excursion, Night
from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import Judged, Ruleset, State

WORSE, BETTER = -1, 1


@dataclass(slots=True)
class Segment:
    """Judges its nights one after the other. Values are signed so that higher is better."""

    start: str
    margin: float
    rules: Ruleset
    reference: Reference = field(default_factory=Reference)
    excursions: dict[int, Excursion] = field(
        default_factory=lambda: dict.fromkeys((WORSE, BETTER), Excursion())
    )
    suspect: Night | None = None
    """The night before, if it stood out."""
    before_suspect: Reference = field(default_factory=Reference)
    """Nights before that one."""
    alarm: Alarm | None = None
    adopted_on: str = ""
    """Night that an improvement became the reference on."""

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
        if self.adopted_on == name:
            return
        if self.alarm is not None:
            self._begin(self.alarm.episode)
        else:
            self._begin(Episode(name, Reference().add(value)))

    def _begin(self, episode: Episode) -> None:
        self.start = episode.start
        self.reference = episode.nights
        self.suspect = None
        self._at_rest()

    def _at_rest(self) -> None:
        self.alarm = None
        self.excursions = dict.fromkeys((WORSE, BETTER), Excursion())

    def _state(self, night: Night) -> tuple[State, str]:
        back = ""
        if self.alarm is not None:
            if self.alarm.goes_on(night, self.rules):
                return self._going_on(self.alarm, night)
            back = f" It is back at the level before {self.alarm.episode.start}."
            self._learn_from(self.alarm.episode)
            self._at_rest()
        for side, excursion in self.excursions.items():
            self.excursions[side] = excursion.add(night, side, self.reference, self.rules)
        for side in (WORSE, BETTER):
            fired = self._fired(night, side)
            if fired is not None:
                self._at_rest()
                self.suspect = None
                self.alarm, words = fired
                return self.alarm.state, f"{_word(side)} {words}."
        return self._quiet(night, back)

    def _going_on(self, alarm: Alarm, night: Night) -> tuple[State, str]:
        episode = alarm.episode
        shift = alarm.side * (episode.nights.mean - self.reference.mean)
        nights = f"{episode.nights.num} nights since {episode.start}"
        reason = f"{_word(alarm.side)} by {shift:.4g} on average of {nights}."
        if alarm.side == BETTER and episode.nights.num >= self.rules.least_nights:
            reason = f"{reason} They are the reference from now on."
            self._begin(episode)
            self.adopted_on = night.name
        return alarm.state, reason

    def _learn_from(self, episode: Episode) -> None:
        """Take a short alarm that ended by itself for noise, or heavy tails would alarm ever more often.

        Its nights count as if they were just certain: one broken night must not hide the next.
        """
        if episode.nights.num > self.rules.episode_nights:
            return
        low, high = self.reference.band(-self.rules.certain)
        for value in episode.first:
            self.reference = self.reference.add(max(low, min(value, high)))

    def _fired(self, night: Night, side: int) -> tuple[Alarm, str] | None:
        """Return the alarm of the first rule that fires and what it says, or None."""
        state: State = "improved" if side == BETTER else "regressed"
        deviation = side * night.residual
        shift = side * (night.value - self.reference.mean)
        if deviation > -self.rules.certain and shift > self.margin:
            return Alarm(side, state, deviation, Episode().add(night)), f"by {shift:.4g} in one night"
        return self._confirmed(night, side, state) or self._crept(side, state)

    def _confirmed(self, night: Night, side: int, state: State) -> tuple[Alarm, str] | None:
        """Return the alarm of two nights in a row, or None; takes the first out of the reference."""
        if self.suspect is None:
            return None
        if side * self.suspect.residual < 0 or side * night.residual <= -self.rules.confirm:
            return None
        episode = Episode().add(self.suspect).add(night)
        shift = side * (episode.nights.mean - self.before_suspect.mean)
        if shift <= self.margin:
            return None
        self.reference = self.before_suspect
        depth = side * (self.suspect.residual + night.residual) / 2
        return Alarm(side, state, depth, episode), f"by {shift:.4g} on two nights in a row"

    def _crept(self, side: int, state: State) -> tuple[Alarm, str] | None:
        """Return the alarm of the CUSUM, or None; takes its nights out of the reference."""
        excursion = self.excursions[side]
        episode = excursion.episode
        shift = side * (episode.nights.mean - excursion.before.mean)
        if excursion.cusum <= self.rules.threshold or shift <= self.margin:
            return None
        self.reference = excursion.before
        words = f"by {shift:.4g} on average since {episode.start}"
        if side == WORSE and excursion.farthest <= -self.rules.suspect:
            state = "drifted"
            words = f"{words}, though no single night stands out"
        return Alarm(side, state, excursion.total / episode.nights.num, episode), words

    def _quiet(self, night: Night, back: str) -> tuple[State, str]:
        """Learn from a night without alarm; after one that stands out, the next decides."""
        known = self.reference
        self.reference = known.add(night.value)
        self.suspect = None
        shift = night.value - known.mean
        if abs(night.residual) <= -self.rules.suspect or abs(shift) <= self.margin:
            return "ok", f"Like the {known.num} nights before it.{back}"
        self.suspect = night
        self.before_suspect = known
        if shift > 0:
            return "ok", f"Better by {shift:.4g}; the next night decides.{back}"
        return "suspected", f"Worse by {-shift:.4g}; the next night decides.{back}"


def _word(side: int) -> str:
    return "Worse" if side == WORSE else "Better"
