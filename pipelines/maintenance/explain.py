"""Explains why a fingerprint changed: which key of the recipe, in the stage itself or in an input.

A fingerprint is the hash of a stage's version, its settings and the root hashes of its inputs
(`pipelines.runtime.plan`). Two such identities are compared key by key; an input that differs is followed
to the stage whose own settings differ.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, StageRecord
from dualtoken.pipelines.core.stage import input_name, label
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.stage_folder import input_folders
from dualtoken.pipelines.runtime.stages import get_stage

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a stage's output: all that decides it, planned or as it stands in a `stage.json`."""

    label: str
    """`train`, or `download web`."""
    fingerprint: str | None
    """None while an input is unfinished."""
    own: Mapping[str, Any]
    """Version and settings."""
    recipe_keys: Mapping[str, str]
    """Keys of the recipe by those of `own` that are spelt otherwise."""
    inputs: Mapping[str, "Identity | None"] = field(default_factory=dict)
    """Identities by input name; None where an input's folder is gone."""
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    """Root hashes of the inputs; None where unfinished."""


class Change(NamedTuple):
    """One thing that changed a fingerprint."""

    stage: str
    """Label of the stage whose own setting it is."""
    key: str
    old: str
    """JSON, or `ABSENT`."""
    new: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.key}: {self.old} -> {self.new}"


class Explanation(NamedTuple):
    """A stage, what it is compared with, and what differs."""

    stage: str
    """Label of the stage."""
    compared: bool
    """False where there is nothing to compare with."""
    old: str | None
    """The fingerprint compared with; None while an input is unfinished."""
    new: str | None
    """The fingerprint now, likewise."""
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        new = self.new or "not known yet"
        if not self.compared:
            return f"{self.stage}: {new}, nothing to compare with"
        if not self.changes:
            return f"{self.stage}: the same, {new}"
        return f"{self.stage}: {self.old or 'not known yet'} -> {new}"


def explain(planner: Planner, other: Planner | None = None) -> Iterator[Explanation]:
    """Compare every stage with another recipe's, or with the most alike of its folders below the root."""
    comparison = _Comparison()
    other_labels = {planned.label for planned in other.plan()} if other else set[str]()
    for planned in planner.plan():
        new = comparison.planned(planner, planned.stage, planned.corpus)
        if other is None:
            candidates = comparison.folders_of(planner, planned)
        elif planned.label in other_labels:
            candidates = [comparison.planned(other, planned.stage, planned.corpus)]
        else:
            candidates = []
        yield _closest(comparison, new, candidates)


def _closest(comparison: "_Comparison", new: Identity, candidates: list[Identity]) -> Explanation:
    """Compare an identity with the candidate that differs in the fewest keys."""
    if not candidates:
        return Explanation(new.label, compared=False, old=None, new=new.fingerprint, changes=())
    if new.fingerprint is not None and any(old.fingerprint == new.fingerprint for old in candidates):
        return Explanation(new.label, compared=True, old=new.fingerprint, new=new.fingerprint, changes=())
    explanations: list[Explanation] = []
    for old in candidates:
        changes = comparison.changes(old, new)
        explanations.append(Explanation(new.label, True, old.fingerprint, new.fingerprint, changes))
    return min(explanations, key=lambda explanation: len(explanation.changes))


class _Comparison:
    """Compares identities, each pair and each folder once: inputs are shared by many stages."""

    def __init__(self) -> None:
        self._planned: dict[tuple[int, str], Identity] = {}
        self._stored: dict[str, Identity | None] = {}
        self._changes: dict[tuple[int, int], tuple[Change, ...]] = {}

    def planned(self, planner: Planner, name: str, corpus: str | None) -> Identity:
        """Return a stage's identity under a recipe, as far as it is known now."""
        key = (id(planner), input_name(name, corpus))
        if key not in self._planned:
            self._planned[key] = self._identity(planner, name, corpus)
        return self._planned[key]

    def _identity(self, planner: Planner, name: str, corpus: str | None) -> Identity:
        planned = planner.get(name, corpus)
        stage = get_stage(name)
        inputs: dict[str, Identity | None] = {}
        hashes: dict[str, str | None] = {}
        for input_stage, input_corpus in stage.reads(planner.recipe, corpus):
            manifest = planner.get(input_stage, input_corpus).manifest
            key = input_name(input_stage, input_corpus)
            inputs[key] = self.planned(planner, input_stage, input_corpus)
            hashes[key] = manifest.lineage_hash if manifest else None
        own = {"version": stage.version, **stage.settings(planner.recipe, corpus)}
        fingerprint = planned.job.fingerprint if planned.job else None
        keys = _recipe_keys(name, corpus)
        return Identity(planned.label, fingerprint, own, keys, inputs, hashes)

    def folders_of(self, planner: Planner, planned: PlannedStage) -> list[Identity]:
        """Return the identities of a stage's folders below a root, finished ones first."""
        below_root = get_stage(planned.stage).folder.format(corpus=planned.corpus)
        top = Store(join(planner.root.url, below_root))
        folders = sorted(map(top.at, top.folders()), key=lambda folder: not folder.exists(MANIFEST_FILE))
        stored = map(self.stored, folders)
        return [identity for identity in stored if identity is not None]

    def stored(self, store: Store) -> Identity | None:
        """Return the identity of a stage's folder and of its inputs, or None where the folder is gone."""
        if store.url not in self._stored:
            self._stored[store.url] = self._read(store) if store.exists(STAGE_FILE) else None
        return self._stored[store.url]

    def _read(self, store: Store) -> Identity:
        record = StageRecord.read(store, STAGE_FILE)
        own = {"version": record.identity["version"], **record.identity["settings"]}
        folders = input_folders(store, record)
        inputs = {name: self.stored(Store(folder)) for name, folder in folders.items()}
        name = label(record.stage, record.corpus)
        keys = _recipe_keys(record.stage, record.corpus)
        return Identity(name, record.fingerprint, own, keys, inputs, record.identity["inputs"])

    def changes(self, old: Identity, new: Identity) -> tuple[Change, ...]:
        """Return what differs between two identities of a stage: own keys first, then those of the inputs."""
        key = (id(old), id(new))  # both are held by this object
        if key not in self._changes:
            self._changes[key] = tuple(dict.fromkeys(self._find_changes(old, new)))
        return self._changes[key]

    def _find_changes(self, old: Identity, new: Identity) -> Iterator[Change]:
        for key, was, now in _differences(old.own, new.own):
            yield Change(new.label, _in_recipe(key, new.recipe_keys), _text(was), _text(now))
        for name in sorted({*old.hashes, *new.hashes}):
            if name not in new.hashes or name not in old.hashes:
                key = f"reads {name.replace('/', ' ')}"
                yield Change(new.label, key, str(name in old.hashes), str(name in new.hashes))
            elif new.hashes[name] is None or old.hashes[name] != new.hashes[name]:
                yield from self._changes_of_input(name, old, new)

    def _changes_of_input(self, name: str, old: Identity, new: Identity) -> Iterator[Change]:
        was = old.inputs[name]
        now = new.inputs[name]
        assert now is not None, "a plan knows its inputs"
        found = self.changes(was, now) if was else ()
        yield from found
        if not found and new.hashes[name] is not None:
            # Such as URLs that gave other answers, a GPU's last bits, or a folder that is gone by now.
            why = "content under the same settings" if was else "content; the old folder is gone"
            yield Change(now.label, why, str(old.hashes[name])[:12], str(new.hashes[name])[:12])


def _recipe_keys(stage: str, corpus: str | None) -> dict[str, str]:
    keys = {"version": "(version of the stage's code)"}
    for setting, key in get_stage(stage).recipe_keys.items():
        keys[setting] = key.format(corpus=corpus)
    return keys


def _in_recipe(setting: str, recipe_keys: Mapping[str, str]) -> str:
    """Return a setting's key as a recipe spells it; the longest prefix that is spelt otherwise counts."""
    parts = setting.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in recipe_keys:
            return ".".join([recipe_keys[prefix], *parts[length:]])
    return setting


def _differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield (key, old, new) of the innermost values that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        prefix = f"{place}." if place else ""
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key, ABSENT), new.get(key, ABSENT), f"{prefix}{key}")
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for number, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(was, now, f"{place}.{number}")
    elif old != new:
        yield place, old, new


def _text(value: Any) -> str:  # noqa: ANN401
    if value == ABSENT:
        return ABSENT
    return json.dumps(value, ensure_ascii=False)
