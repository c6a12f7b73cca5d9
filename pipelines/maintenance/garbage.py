"""Finds what a run's root holds and nothing needs: left-overs of killed writes, files that no receipt names, old fingerprints.

Only what this project wrote is looked at: left-overs by their names, and folders with a `stage.json`. What is younger than an age
limit may be in the making and stays, and so does all that a needed folder was made from, or that its recipe names. A listing takes
minutes, in which a run may go on, so each thing is looked at once more just before it is deleted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pydantic import ValidationError

from dualtoken.infra.storage import Store, StoredFile, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    StageRecord,
    iter_receipts,
    read_manifest,
    receipt_name,
)
from dualtoken.pipelines.core.tombstones import FORGOTTEN_FILE
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import Planned, Planner
from dualtoken.pipelines.runtime.stage_folder import input_folders, stage_folders


class GarbageKind(StrEnum):
    """Why something is not needed."""

    LEFTOVER = "left over by a killed write"
    NO_RECEIPT = "of a unit without a receipt"
    UNNAMED = "named by no receipt"
    OLD = "of a fingerprint that no recipe given refers to"


class Garbage(NamedTuple):
    """A file, or the whole of a stage's folder, that nothing needs."""

    kind: GarbageKind
    name: str
    """Below the root; ends in a slash where it is a folder."""
    files: tuple[StoredFile, ...]
    receipt: str | None = None
    """Which would make it needed."""

    @property
    def bytes(self) -> int:
        """Return what deleting it frees."""
        return sum(file.bytes for file in self.files)


def find_garbage(
    root: Store, recipes: Sequence[Recipe], min_age_seconds: float, now: float | None = None
) -> Iterator[Garbage]:
    """Yield what is not needed below a root, all of it older than the limit; old fingerprints only where recipes are given.

    Raises `UserError` where nothing below the root is a stage's.
    """
    before = (time.time() if now is None else now) - min_age_seconds
    folders = [folder.removeprefix(f"{root.url}/") for folder in stage_folders(root)]
    if not folders or root.url in folders:
        raise UserError(
            f"{root.url} is no run's root ({'one stage' if folders else 'no stage below it'}): give the folder above the corpora's"
        )
    needed = _needed(root, recipes, folders) if recipes else set(folders)
    places = frozenset(folders)
    # In order of name the files of a folder come together, so memory holds one folder's.
    for folder, files in groupby(root.entries(), lambda file: _folder_of(file.name, places)):
        if folder is None:
            yield from (
                Garbage(GarbageKind.LEFTOVER, file.name, (file,))
                for file in files
                if file.is_leftover and file.modified < before
            )
        elif folder in needed:
            yield from (one for one in _orphans(root, folder, list(files)) if one.files[0].modified < before)
        elif (held := tuple(files)) and max(file.modified for file in held) < before:
            yield Garbage(GarbageKind.OLD, f"{folder}/", held)


def _folder_of(name: str, folders: frozenset[str]) -> str | None:
    return next((str(above) for above in PurePosixPath(name).parents if str(above) in folders), None)


def _needed(root: Store, recipes: Sequence[Recipe], folders: Iterable[str]) -> set[str]:
    """Return the folders that recipes refer to, and all that those were made from."""
    records = {folder: StageRecord.from_bytes(root.read(join(folder, STAGE_FILE))) for folder in folders}
    needed: set[str] = set()
    for recipe in recipes:
        needed |= {folder for stage in _NAMED for folder in _named(stage, None, recipe.model_dump(), records)}
        for planned in Planner(recipe).plan():
            needed |= {folder for folder, record in records.items() if _is_of(root, planned, folder, record)}
    open_ = list(needed)
    while open_:
        record = records[folder := open_.pop()]
        made_from = {
            one.removeprefix(f"{root.url}/") for one in input_folders(root.at(folder), record).values()
        }
        made_from |= _named(record.stage, record.corpus, record.recipe, records)
        open_ += (new := made_from & records.keys() - needed)
        needed |= new
    return needed


def undecided(recipes: Iterable[Recipe]) -> list[str]:
    """Return the steps whose fingerprint is not known before their inputs are finished."""
    return list(
        dict.fromkeys(
            planned.label for recipe in recipes for planned in Planner(recipe).plan() if planned.job is None
        )
    )


_NAMED: dict[str, Callable[[Mapping[str, Any], str | None], list[str | None]]] = {
    "download": lambda recipe, corpus: [
        one["source"].get("folder") for name, one in recipe["corpora"].items() if corpus in {None, name}
    ],
    "teacher": lambda recipe, _: [recipe["teacher"].get("folder")],
    "train": lambda recipe, _: [recipe["train"].get("start_from")],
}
"""Folders that a stage's settings name, beside its inputs."""


def _named(stage: str, corpus: str | None, recipe: Mapping[str, Any], folders: Iterable[str]) -> set[str]:
    """Return which of the folders a stage's settings name, wherever the run was moved since."""
    places = [
        f"/{place.rstrip('/')}"
        for place in (_NAMED[stage](recipe, corpus) if stage in _NAMED else ())
        if place
    ]
    return {folder for folder in folders if any(place.endswith(f"/{folder}") for place in places)}


def _is_of(root: Store, planned: Planned, folder: str, record: StageRecord) -> bool:
    """Tell whether a folder is a planned step's; while its inputs are unfinished, each of the step's folders may be."""
    if planned.job is not None:
        return planned.job.folder == join(root.url, folder)
    return (record.stage, record.corpus) == (planned.step, planned.corpus)


def _orphans(root: Store, folder: str, held: list[StoredFile]) -> Iterator[Garbage]:
    """Yield the files of a stage's folder that its receipts and its manifest do not name."""
    names = {file.name.removeprefix(f"{folder}/"): file for file in held}
    receipts = [name for name in names if name.startswith(f"{RECEIPTS}/") and not names[name].is_leftover]
    named = {STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE, *receipts}
    store = root.at(folder)
    try:
        for receipt in iter_receipts(store, [PurePosixPath(name).stem for name in receipts]):
            named |= {file.name for file in receipt.files}
        if manifest := read_manifest(store):
            named |= {file.name for file in manifest.files}
    except ValidationError:
        return  # What a damaged receipt names is not known: `dualtoken verify --repair` first.
    done = {PurePosixPath(name).stem for name in receipts}
    for name, file in names.items():
        if file.is_leftover:
            yield Garbage(GarbageKind.LEFTOVER, file.name, (file,))
        elif name not in named and not name.startswith(UNTRACKED):
            unit = PurePosixPath(name).name.partition(".")[0].removesuffix("_stats")
            of_open_unit = unit not in done and (unit.isdecimal() or name.startswith(f"{LEDGERS}/"))
            receipt = join(folder, receipt_name(unit)) if of_open_unit else None
            yield Garbage(
                GarbageKind.NO_RECEIPT if of_open_unit else GarbageKind.UNNAMED, file.name, (file,), receipt
            )


def delete(root: Store, garbage: Iterable[Garbage]) -> list[Garbage]:
    """Delete garbage, and return what was left because it changed since it was listed.

    A folder goes in an order that leaves it, wherever this is killed, unfinished and found again.
    """
    left = []
    for one in garbage:
        if not _is_as_listed(root, one):
            left.append(one)
            continue
        for file in sorted(one.files, key=lambda file: _rank(file.name)):
            root.remove(file.name)
        if one.kind == GarbageKind.OLD:
            root.remove_empty_folders(one.name)
    return left


def _is_as_listed(root: Store, one: Garbage) -> bool:
    """Tell whether garbage is what it was; a resumed run may have written a file of the same name, and its receipt."""
    if one.kind == GarbageKind.OLD:
        return tuple(root.entries(one.name.rstrip("/"))) == one.files
    (listed,), now = one.files, root.entry(one.name)
    if now is None or (one.receipt and root.exists(one.receipt)):
        return False
    return now.bytes == listed.bytes and abs(now.modified - listed.modified) <= 1


def _rank(name: str) -> int:
    path = PurePosixPath(name)
    return (
        0
        if path.name == MANIFEST_FILE
        else 1
        if path.parent.name == RECEIPTS
        else 3
        if path.name == STAGE_FILE
        else 2
    )


def totals(garbage: Iterable[Garbage]) -> dict[GarbageKind, tuple[int, int]]:
    """Return files and bytes by kind."""
    files: Counter[GarbageKind] = Counter()
    sizes: Counter[GarbageKind] = Counter()
    for one in garbage:
        files[one.kind] += len(one.files)
        sizes[one.kind] += one.bytes
    return {kind: (files[kind], sizes[kind]) for kind in GarbageKind if files[kind]}


def common_root(recipes: Sequence[Recipe]) -> Store:
    """Return the root that recipes share; raises `UserError` where they have several."""
    roots = {Store(recipe.root).url for recipe in recipes}
    if len(roots) > 1:
        raise UserError(f"the recipes have the roots {', '.join(sorted(roots))}: give one with --root")
    assert len(roots) == 1, "no recipe"
    return Store(roots.pop())
