"""Finds what a run's root holds and nothing needs: left-overs of killed writes, files that no receipt names, old fingerprints.

Only what this project wrote is looked at: left-overs by their names, and folders with a `stage.json`. What is younger than an age
limit may be in the making and stays, and so does all that a needed folder was made from.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import ValidationError

from infra.storage import Store, StoredFile, join
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.plan import Planned, Planner
from pipelines.receipts import LEDGERS, MANIFEST_FILE, RECEIPTS, STAGE_FILE, UNTRACKED, Manifest, Receipt, StageRecord
from pipelines.stage_folder import input_folders
from pipelines.tombstones import FORGOTTEN_FILE


class Kind(StrEnum):
    """Why something is not needed."""

    LEFTOVER = "left over by a killed write"
    NO_RECEIPT = "of a unit without a receipt"
    UNNAMED = "named by no receipt"
    OLD = "of a fingerprint that no recipe given refers to"


class Garbage(NamedTuple):
    """A file, or the whole of a stage's folder, that nothing needs."""

    kind: Kind
    name: str
    """Below the root; ends in a slash where it is a folder."""
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Return what deleting it frees."""
        return sum(file.bytes for file in self.files)


def find_garbage(root: Store, recipes: Sequence[Recipe], min_age_seconds: float, now: float | None = None) -> Iterator[Garbage]:
    """Yield what is not needed below a root, all of it older than the limit; old fingerprints only where recipes are given.

    Raises `UserError` where nothing below the root is a stage's.
    """
    before = (time.time() if now is None else now) - min_age_seconds
    files = list(root.entries())
    folders = [file.name.removesuffix(f"/{STAGE_FILE}") for file in files if PurePosixPath(file.name).name == STAGE_FILE]
    if not folders or STAGE_FILE in folders:
        raise UserError(
            f"{root.url} is no run's root ({'one stage' if folders else 'no stage below it'}): give the folder above the corpora's"
        )
    needed = _needed(root, recipes, folders) if recipes else set(folders)
    by_folder: dict[str, list[StoredFile]] = {folder: [] for folder in folders}
    for file in files:
        folder = next((str(above) for above in PurePosixPath(file.name).parents if str(above) in by_folder), None)
        if folder is not None:
            by_folder[folder].append(file)
        elif file.is_leftover and file.modified < before:
            yield Garbage(Kind.LEFTOVER, file.name, (file,))
    for folder, held in by_folder.items():
        if folder in needed:
            yield from (one for one in _orphans(root, folder, held) if one.files[0].modified < before)
        elif max(file.modified for file in held) < before:
            yield Garbage(Kind.OLD, f"{folder}/", tuple(held))


def _needed(root: Store, recipes: Sequence[Recipe], folders: Iterable[str]) -> set[str]:
    """Return the folders that recipes refer to, and all that those were made from."""
    records = {folder: StageRecord.from_bytes(root.read(join(folder, STAGE_FILE))) for folder in folders}
    needed: set[str] = set()
    for recipe in recipes:
        for planned in Planner(recipe).plan():
            needed |= {folder for folder, record in records.items() if _is_of(root, planned, folder, record)}
    open_ = list(needed)
    while open_:
        store = root.at(folder := open_.pop())
        made_from = {folder.removeprefix(f"{root.url}/") for folder in input_folders(store, records[folder]).values()}
        open_ += (new := made_from & records.keys() - needed)
        needed |= new
    return needed


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
    try:
        for name in receipts:
            named |= {file.name for file in Receipt.from_bytes(root.read(join(folder, name))).files}
        if MANIFEST_FILE in names:
            named |= {file.name for file in Manifest.from_bytes(root.read(join(folder, MANIFEST_FILE))).files}
    except ValidationError:
        return  # What a damaged receipt names is not known: `dualtoken verify --repair` first.
    done = {PurePosixPath(name).stem for name in receipts}
    for name, file in names.items():
        if file.is_leftover:
            yield Garbage(Kind.LEFTOVER, file.name, (file,))
        elif name not in named and not name.startswith(UNTRACKED):
            unit = PurePosixPath(name).name.partition(".")[0].removesuffix("_stats")
            of_open_unit = unit not in done and (unit.isdecimal() or name.startswith(f"{LEDGERS}/"))
            yield Garbage(Kind.NO_RECEIPT if of_open_unit else Kind.UNNAMED, file.name, (file,))


def delete(root: Store, garbage: Iterable[Garbage]) -> None:
    """Delete garbage; a folder goes in an order that leaves it, wherever this is killed, unfinished and found again."""
    for one in garbage:
        for file in sorted(one.files, key=lambda file: _rank(file.name)):
            root.remove(file.name)
        if one.kind == Kind.OLD:
            root.remove_empty_folders(one.name)


def _rank(name: str) -> int:
    path = PurePosixPath(name)
    return 0 if path.name == MANIFEST_FILE else 1 if path.parent.name == RECEIPTS else 3 if path.name == STAGE_FILE else 2


def totals(garbage: Iterable[Garbage]) -> dict[Kind, tuple[int, int]]:
    """Return files and bytes by kind."""
    files: Counter[Kind] = Counter()
    sizes: Counter[Kind] = Counter()
    for one in garbage:
        files[one.kind] += len(one.files)
        sizes[one.kind] += one.bytes
    return {kind: (files[kind], sizes[kind]) for kind in Kind if files[kind]}


def common_root(recipes: Sequence[Recipe]) -> Store:
    """Return the root that recipes share; raises `UserError` where they have several."""
    roots = {Store(recipe.root).url for recipe in recipes}
    if len(roots) > 1:
        raise UserError(f"the recipes have the roots {', '.join(sorted(roots))}: give one with --root")
    assert len(roots) == 1, "no recipe"
    return Store(roots.pop())
