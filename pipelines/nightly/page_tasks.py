"""What is bad now, and the command lines that settle it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.receipts import MAX_CLOCK_SKEW
from dualtoken.pipelines.nightly.page_data import PageData, PageNight, day
from dualtoken.pipelines.nightly.states import (
    ACCEPTABLE,
    REGRESSED,
    UNMEASURED,
    State,
    is_acknowledged,
    standing,
)

_WHY = "--reason=WHY"
_SAID: dict[State, str] = {
    "running": "is under way",
    "paused": "is paused",
    "missed": "was missed",
    "failed": "failed",
    "incomplete": "is incomplete",
    "incomparable": "cannot be compared",
    "evaluator-changed": "was measured by an evaluator that changed",
    "ok": "is ok",
    "improved": "is better",
    "suspected": "is suspected to be worse",
    "regressed": "has regressed",
    "drifted": "has drifted",
}


class Task(NamedTuple):
    """Something that a person should look at."""

    state: State
    title: str
    reason: str
    commands: tuple[str, ...]
    """Command lines, any of which settles it."""
    night: str


def headline(data: PageData) -> str:
    """Say in one sentence what the newest night is."""
    begun = [night for night in data.all_nights if night.is_begun]
    if not begun:
        planned = data.all_nights[0].state if data.all_nights else None
        if planned is None or planned.starts is None:
            return "No night is expected."
        return f"No night yet: the first starts on {planned.starts:%-d %b %Y at %H:%M} UTC."
    state = begun[-1].state
    text = f"The night of {day(state.night)} {_SAID[state.state]}"
    if state.is_settled:
        text += ", which a person has settled"
    return f"{text}{': ' + state.reason if state.reason else ''}".rstrip(".") + "."


def tasks(data: PageData) -> list[Task]:
    """Return what is bad now: the model, then the evaluator, then nights without numbers, newest first."""
    return [*_model(data), *_comparability(data), *reversed(list(_without_numbers(data)))]


def _model(data: PageData) -> Iterator[Task]:
    """Yield a task for each series that stands regressed."""
    found = standing([night.state for night in data.all_nights])
    if found is None or found.is_settled or found.state not in REGRESSED:
        return
    [night] = [night for night in data.all_nights if night.name == found.night]
    for series, state in found.series.items():
        if state in REGRESSED and not is_acknowledged(data.snapshot, series, found.night):
            verdict = night.judged(series)
            yield Task(
                state=state,
                title=f"{series} {_SAID[state]}",
                reason=f"{verdict.reason if verdict else ''} {_since(data, night, series)}".strip(),
                commands=(
                    data.command("ack", series, night.name, _WHY),
                    data.command("accept", night.name, _WHY),
                ),
                night=night.name,
            )


def _since(data: PageData, night: PageNight, series: str) -> str:
    """Say since when a series has been bad."""
    first = night.name
    for earlier in reversed([one for one in data.all_nights if one.name < night.name]):
        state = earlier.state.series.get(series)
        if state is not None and state not in REGRESSED:
            break
        if state in REGRESSED:
            first = earlier.name
    return f"It alarms since {day(first)}." if first != night.name else ""


def _comparability(data: PageData) -> Iterator[Task]:
    """Yield a task where the newest numbers are in no trend."""
    numbers = [night for night in data.all_nights if night.record is not None and not night.state.backfilled]
    if not numbers:
        return
    night = numbers[-1]
    state = night.state
    if state.state not in ACCEPTABLE - REGRESSED or state.is_settled:
        return
    commands = (data.command("accept", night.name, _WHY),)
    if state.state == "incomplete":
        commands = (data.command("run"),)
    yield Task(
        state.state,
        f"The night of {day(night.name)} {_SAID[state.state]}",
        state.reason,
        commands,
        night.name,
    )


def _without_numbers(data: PageData) -> Iterator[Task]:
    """Yield a task for each stretch of nights that were missed or failed."""
    stretch: list[PageNight] = []
    for night in data.all_nights:
        if night.state.state in UNMEASURED and (not stretch or stretch[-1].state.state == night.state.state):
            stretch.append(night)
            continue
        if stretch:
            yield _backfill(data, stretch)
        stretch = [night] if night.state.state in UNMEASURED else []
    if stretch:
        yield _backfill(data, stretch)


def _backfill(data: PageData, stretch: Sequence[PageNight]) -> Task:
    first, last = stretch[0], stretch[-1]
    state = last.state
    if first is last:
        title = f"The night of {day(last.name)} {_SAID[state.state]}"
    else:
        verb = "were missed" if state.state == "missed" else "failed"
        title = f"{pluralized(len(stretch), 'night')} {verb}, {day(first.name)} to {day(last.name)}"
    commands = [data.command("backfill", f"--from={first.name}", f"--to={last.name}")]
    if state.deadline is not None and data.made_at <= state.deadline - MAX_CLOCK_SKEW:
        commands.insert(0, data.command("run"))
    if state.starts is None:
        commands = []
    return Task(state.state, title, state.reason, tuple(commands), last.name)
