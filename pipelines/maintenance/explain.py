"""Says why a step has another fingerprint than before: which of the recipe's keys changed, here or in a step that it reads.

A fingerprint is the hash of a step's version, its settings and the root hashes of its inputs (`pipelines.runtime.plan`). Two such
identities are compared key by key; an input that differs is followed to the step whose own settings differ.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, StageRecord
from dualtoken.pipelines.runtime.plan import Planned, Planner
from dualtoken.pipelines.runtime.stage_folder import input_folders
from dualtoken.pipelines.runtime.steps import STEPS, input_name

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a step's output, planned or as it stands in a `stage.json`."""

    label: str
    """`train`, or `download web`."""
    fingerprint: str | None
    """None while an input is unfinished."""
    own: Mapping[str, Any]
    """Version and settings."""
    inputs: Mapping[str, "Identity | None"] = field(default_factory=dict)
    """By input name; None where an input's folder is gone."""
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    """Root hashes of the inputs; None where unfinished."""


class Change(NamedTuple):
    """One thing that changed a fingerprint."""

    step: str
    """Whose own setting it is."""
    key: str
    old: str
    """JSON, or `ABSENT`."""
    new: str

    def __str__(self) -> str:
        return f"{self.step}: {self.key}: {self.old} -> {self.new}"


class Explanation(NamedTuple):
    """A step, what it is compared with, and what differs."""

    step: str
    compared: bool
    """False where there is nothing to compare with."""
    old: str | None
    """A fingerprint, as the next; None while an input is unfinished."""
    new: str | None
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        old, new = self.old or "not known yet", self.new or "not known yet"
        if not self.compared:
            return f"{self.step}: {new}, nothing to compare with"
        return f"{self.step}: {f'{old} -> {new}' if self.changes else f'the same, {new}'}"


class _Comparison:
    """Compares identities, each pair and each folder once: inputs are shared by many steps."""

    def __init__(self) -> None:
        self._planned: dict[tuple[int, str], Identity] = {}
        self._stored: dict[str, Identity | None] = {}
        self._changes: dict[tuple[int, int], tuple[Change, ...]] = {}

    def planned(self, planner: Planner, name: str, corpus: str | None) -> Identity:
        """Return a step's identity under a recipe, as far as it is known now."""
        key = id(planner), input_name(name, corpus)
        if key not in self._planned:
            planned, step = planner.one(name, corpus), STEPS[name]
            reads = step.reads(planner.recipe, corpus)
            manifests = {input_name(of, its): planner.one(of, its).manifest for of, its in reads}
            self._planned[key] = Identity(
                planned.label,
                planned.job.fingerprint if planned.job else None,
                {"version": step.version, **step.settings(planner.recipe, corpus)},
                {input_name(of, its): self.planned(planner, of, its) for of, its in reads},
                {name: manifest.lineage_hash if manifest else None for name, manifest in manifests.items()},
            )
        return self._planned[key]

    def stored(self, store: Store) -> Identity | None:
        """Return the identity of a stage's folder and of its inputs, or None where the folder is gone."""
        if store.url not in self._stored:
            self._stored[store.url] = self._read(store) if store.exists(STAGE_FILE) else None
        return self._stored[store.url]

    def _read(self, store: Store) -> Identity:
        record = StageRecord.from_bytes(store.read(STAGE_FILE))
        label = f"{record.stage} {record.corpus}" if record.corpus else record.stage
        own = {"version": record.identity["version"], **record.identity["settings"]}
        inputs = {name: self.stored(Store(folder)) for name, folder in input_folders(store, record).items()}
        return Identity(label, record.fingerprint, own, inputs, record.identity["inputs"])

    def changes(self, old: Identity, new: Identity) -> tuple[Change, ...]:
        """Return what differs between two identities of a step: its own keys first, then those of the inputs that differ."""
        key = id(old), id(new)  # both are held by this object
        if key not in self._changes:
            self._changes[key] = tuple(dict.fromkeys(self._find_changes(old, new)))
        return self._changes[key]

    def _find_changes(self, old: Identity, new: Identity) -> Iterator[Change]:
        yield from (
            Change(new.label, key, _text(was), _text(now)) for key, was, now in _differences(old.own, new.own)
        )
        for name in sorted({*old.hashes, *new.hashes}):
            if name not in new.hashes or name not in old.hashes:
                yield Change(
                    new.label,
                    f"reads {name.replace('/', ' ')}",
                    str(name in old.hashes),
                    str(name in new.hashes),
                )
            elif new.hashes[name] is None or old.hashes[name] != new.hashes[name]:
                yield from self._changes_of_input(name, old, new)

    def _changes_of_input(self, name: str, old: Identity, new: Identity) -> Iterator[Change]:
        was, now = old.inputs[name], new.inputs[name]
        assert now is not None, "a plan knows its inputs"
        found = self.changes(was, now) if was else ()
        yield from found
        if not found and new.hashes[name] is not None:
            # Such as of URLs that gave other answers, of a GPU's last bits, or of a folder that is gone by now.
            why = "content under the same settings" if was else "content; the old folder is gone"
            yield Change(now.label, why, str(old.hashes[name])[:12], str(new.hashes[name])[:12])


def _differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield (key, old, new) of the innermost values that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(
                old.get(key, ABSENT), new.get(key, ABSENT), f"{place}.{key}" if place else str(key)
            )
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for number, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(was, now, f"{place}.{number}")
    elif old != new:
        yield place, old, new


def _text(value: Any) -> str:  # noqa: ANN401
    return ABSENT if value == ABSENT else json.dumps(value, ensure_ascii=False)


def explain(planner: Planner, other: Planner | None = None) -> Iterator[Explanation]:
    """Compare every step of a recipe with another recipe's, or with the most alike of the step's folders below its root."""
    comparison = _Comparison()
    labels = {planned.label for planned in other.plan()} if other else set()
    for planned in planner.plan():
        new = comparison.planned(planner, planned.step, planned.corpus)
        if other is None:
            candidates = [one for folder in _folders(planner, planned) if (one := comparison.stored(folder))]
        else:
            candidates = (
                [comparison.planned(other, planned.step, planned.corpus)] if planned.label in labels else []
            )
        same = [
            one for one in candidates if one.fingerprint is not None and one.fingerprint == new.fingerprint
        ]
        compared = [
            (() if same else comparison.changes(one, new), one.fingerprint) for one in same or candidates
        ]
        found, closest = min(compared, key=lambda pair: len(pair[0]), default=((), None))
        yield Explanation(new.label, bool(compared), closest, new.fingerprint, found)


def _folders(planner: Planner, planned: Planned) -> list[Store]:
    """Return a step's folders, finished ones first."""
    top = Store(join(planner.root.url, STEPS[planned.step].folder.format(corpus=planned.corpus)))
    try:
        names = [str(path).rstrip("/").rpartition("/")[2] for path in top.fs.ls(top.path(), detail=False)]
    except FileNotFoundError:
        return []
    return sorted((top.at(name) for name in names), key=lambda store: not store.exists(MANIFEST_FILE))
