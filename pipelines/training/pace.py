"""Pace of a training over its last steps, and the time that is left at that pace."""

from collections import deque
from typing import NamedTuple

WINDOW_SECONDS = 60.0
"""Time that a pace is measured over: what was before says little of what comes."""
MIN_STEPS = 10
"""Steps that a pace is measured over where they take longer than that."""
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
"""Units of a duration, with their seconds."""


class Pace(NamedTuple):
    """Speed of a training, and what is left of it."""

    samples_per_second: float
    sample_name: str
    """What samples are called, in the plural."""
    steps_per_second: float
    seconds_left: float
    """Time to the last step."""

    def __str__(self) -> str:
        """Return it as a progress line shows it."""
        samples = f"{_rounded(self.samples_per_second)} {self.sample_name}/s"
        return f"{samples}, {_rounded(self.steps_per_second)} steps/s, ETA {duration(self.seconds_left)}"


class PaceMeter:
    """Measures the pace of the steps that this process takes, whatever was done before it began."""

    def __init__(self, steps: int, batch_size: int, sample_name: str = "images") -> None:
        """Take the number of steps of the whole training, and the samples of a step over all workers."""
        self._steps = steps
        self._batch_size = batch_size
        self._sample_name = sample_name
        self._ends: deque[float] = deque()
        """Times when the last steps ended, seconds."""

    def step_taken(self, now: float) -> None:
        """Note that a step ended at a time, seconds."""
        self._ends.append(now)
        while len(self._ends) > MIN_STEPS + 1 and self._ends[1] <= now - WINDOW_SECONDS:
            self._ends.popleft()

    def pace(self, steps_done: int) -> Pace | None:
        """Return the pace after so many steps of the training.

        None after the first of this process: it compiles networks and opens data.
        """
        if len(self._ends) < 2:
            return None
        seconds = self._ends[-1] - self._ends[0]
        if seconds <= 0:
            return None
        rate = (len(self._ends) - 1) / seconds
        seconds_left = (self._steps - steps_done) / rate
        return Pace(rate * self._batch_size, self._sample_name, rate, seconds_left)


def duration(seconds: float) -> str:
    """Return a duration by its two largest units, such as `3 min 20 s`."""
    left = round(seconds)
    parts: list[str] = []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts or name == "s":
            parts.append(f"{count} {name}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part[0] != "0") or "0 s"


def _rounded(rate: float) -> str:
    """Return a rate with three digits, or as a whole number."""
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.3g}"
