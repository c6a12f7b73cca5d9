"""The calendar of nights: a grid for each month, a lettered cell for each night."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from itertools import groupby
from typing import NamedTuple

from dualtoken.pipelines.nightly.page_data import PageNight, day
from dualtoken.pipelines.nightly.states import NightState, State

LETTERS: dict[State, str] = {
    "ok": "O",
    "improved": "I",
    "suspected": "S",
    "regressed": "R",
    "drifted": "D",
    "evaluator-changed": "E",
    "incomparable": "U",
    "incomplete": "P",
    "failed": "F",
    "missed": "M",
    "paused": "Z",
    "running": "W",
    "planned": "N",
}
"""Letter of each state: U is for unlike, P for a part, Z for asleep, W for at work, N for next."""
MEANINGS: dict[State, str] = {
    "ok": "like the nights before",
    "improved": "better than the nights before",
    "suspected": "worse; the next night decides",
    "regressed": "worse",
    "drifted": "worse, though no single night stands out",
    "evaluator-changed": "measured otherwise: the canary moved",
    "incomparable": "of another set or protocol",
    "incomplete": "without some of its numbers",
    "failed": "begun, and not finished",
    "missed": "not begun by its deadline",
    "paused": "not expected",
    "running": "under way",
    "planned": "still to come",
}
"""What each state is, for people."""
TITLE_CHARACTERS = 160
"""Length beyond which a cell's text is cut; the night's page has all of it."""


class Cell(NamedTuple):
    """A night of the calendar."""

    letter: str
    classes: str
    title: str
    row: int
    """Week of the month, from 1."""
    column: int
    """Day of the week, from 1 for Monday."""
    href: str | None


class Month(NamedTuple):
    """A month of the calendar."""

    name: str
    """Such as `November 2026`."""
    cells: list[Cell]


class Count(NamedTuple):
    """How many nights are of one state."""

    state: State
    letter: str
    number: int
    meaning: str


def calendar(nights: Sequence[PageNight], href: Callable[[PageNight], str | None]) -> list[Month]:
    """Return the months of some nights, newest first: a phone shows what matters without a scroll."""
    months: list[Month] = []
    for _, group in groupby(nights, key=lambda night: night.name[:7]):
        of_month = list(group)
        first = date.fromisoformat(of_month[0].name).replace(day=1)
        cells = [_cell(night, href(night), first.weekday()) for night in of_month]
        months.append(Month(f"{first:%B %Y}", cells))
    return months[::-1]


def counts(nights: Sequence[PageNight]) -> list[Count]:
    """Count the nights of each state that there is."""
    numbers = Counter(night.state.state for night in nights)
    return [
        Count(state, letter, numbers[state], MEANINGS[state])
        for state, letter in LETTERS.items()
        if numbers[state]
    ]


def cell_title(state: NightState) -> str:
    """Write what a night is in one line."""
    text = f"{day(state.night)}: {state.state}"
    marks = [name for name, is_set in _marks(state) if is_set]
    if marks:
        text += f" ({', '.join(marks)})"
    if state.reason:
        text += f", {state.reason}"
    return text if len(text) <= TITLE_CHARACTERS else f"{text[: TITLE_CHARACTERS - 1]}…"


def _cell(night: PageNight, href: str | None, days_before: int) -> Cell:
    """Make a night's cell; `days_before` are those of the week before the month's first day."""
    state = night.state
    then = date.fromisoformat(night.name)
    classes = [state.state, *(name for name, is_set in _marks(state) if is_set)]
    return Cell(
        letter=LETTERS[state.state],
        classes=" ".join(classes),
        title=cell_title(state),
        row=(days_before + then.day - 1) // 7 + 1,
        column=then.isoweekday(),
        href=href,
    )


def _marks(state: NightState) -> tuple[tuple[str, bool], ...]:
    return ("settled", state.is_settled), ("backfilled", state.backfilled)
