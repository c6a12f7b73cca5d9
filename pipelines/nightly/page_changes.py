"""What changed from one measured night to the next: environment, protocols, models, recipes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from dualtoken.infra.redaction import redacted
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.nightly.records import MeasuredSubject, NightRecord, one_line
from dualtoken.pipelines.nightly.verdicts import environment_changes, protocol_changes

MOST_KEYS = 20
"""Keys of a recipe that are told; of more, their number."""
ABSENT = "nothing"


class Changes(NamedTuple):
    """What differs between two nights, each by lines."""

    environment: list[str]
    protocols: list[str]
    models: list[str]
    recipes: list[str]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not any(self)


class ChangeReader:
    """Compares nights; a model's record is read once, however many nights had the model."""

    def __init__(self) -> None:
        self._recipes: dict[str, dict[str, Any] | str] = {}

    def between(self, before: NightRecord, after: NightRecord) -> Changes:
        """Return what differs."""
        models: list[str] = []
        recipes: list[str] = []
        for name, subject in after.subjects.items():
            earlier = before.subjects.get(name)
            if earlier is None:
                models.append(f"{name}: measured for the first time")
            elif earlier.digest != subject.digest:
                models += _model_changes(name, earlier, subject)
                recipes += self._recipe_changes(name, earlier, subject)
        models += [f"{name}: not measured" for name in before.subjects if name not in after.subjects]
        return Changes(
            environment=list(environment_changes(before, after)),
            protocols=list(protocol_changes(before, after)),
            models=models,
            recipes=recipes,
        )

    def _recipe_changes(self, name: str, before: MeasuredSubject, after: MeasuredSubject) -> Iterator[str]:
        if "recipe" not in (before.kind, after.kind) or before.place is None or after.place is None:
            return
        if before.place == after.place:
            return
        old, new = self._recipe(before.place), self._recipe(after.place)
        for found in (old, new):
            if isinstance(found, str):
                yield f"{name}: {found}"
                return
        changes = list(_differences(old, new))
        for change in changes[:MOST_KEYS]:
            yield redacted(f"{name}: {change}")
        if len(changes) > MOST_KEYS:
            yield f"{name}: {len(changes) - MOST_KEYS} more keys"

    def _recipe(self, place: str) -> dict[str, Any] | str:
        """Return the recipe that a model was trained by, or why it is not known."""
        if place not in self._recipes:
            try:
                self._recipes[place] = StageRecord.read(Store(place), STAGE_FILE).recipe
            except Exception as error:  # noqa: BLE001  (a model that is gone must not hide the nights)
                self._recipes[place] = f"the recipe of {redacted(place)} cannot be read: {one_line(error)}"
        return self._recipes[place]


def _model_changes(name: str, before: MeasuredSubject, after: MeasuredSubject) -> Iterator[str]:
    yield f"{name}: model {before.digest[:12]} to {after.digest[:12]}"
    if before.place != after.place:
        yield f"{name}: {redacted(str(before.place))} to {redacted(str(after.place))}"


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:  # noqa: ANN401
    """Yield the keys in which two recipes differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        was, now = (ABSENT if value is None else value for value in (old, new))
        yield f"{place}: {was} to {now}"
