"""Finds what nothing below a root needs: left-overs, unnamed files, old fingerprints, checkpoints.

Only what this project wrote is considered: left-overs by their names, and folders with a `stage.json`. What
is younger than an age limit may be in the making and stays. So does all that a needed folder was made from,
or that its recipe names. A listing takes minutes, in which a run may go on, so each file is compared once
more just before it is deleted.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dualtoken.infra.storage import Store, StoredFile, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import (
    CHECKPOINTS,
    LEDGERS,
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    DamagedRecordError,
    StageRecord,
    iter_receipts,
    read_manifest,
    receipt_name,
)
from dualtoken.pipelines.core.tombstones import FORGOTTEN_FILE
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.stage_folder import input_folders, stage_folders
from dualtoken.pipelines.runtime.stages import all_stages, get_stage


class GarbageKind(StrEnum):
    """Kind of garbage: the reason that nothing needs it."""

    LEFTOVER = "left over by a killed write"
    NO_RECEIPT = "of a unit without a receipt"
    UNNAMED = "named by no receipt"
    CHECKPOINTS = "of a training that is finished"
    OLD = "of a fingerprint that no recipe given refers to"


_FOLDERS = frozenset({GarbageKind.OLD, GarbageKind.CHECKPOINTS})
"""Kinds that are whole folders."""


class Garbage(NamedTuple):
    """A file, or a whole folder, that nothing needs."""

    kind: GarbageKind
    name: str
    """Name below the root; ends in a slash where it is a folder."""
    files: tuple[StoredFile, ...]
    receipt: str | None = None
    """Name of the receipt that would make it needed."""

    @property
    def bytes(self) -> int:
        """Bytes that deleting it frees."""
        return sum(file.bytes for file in self.files)


def find_garbage(
    root: Store, recipes: Sequence[Recipe], min_age_seconds: float, now: float | None = None
) -> Iterator[Garbage]:
    """Yield what is not needed below a root, all of it older than the limit.

    Old fingerprints are found only where recipes are given. Raises `UserError` where nothing below the root
    is a stage's.
    """
    if now is None:
        now = time.time()
    before = now - min_age_seconds
    folders = [folder.removeprefix(f"{root.url}/") for folder in stage_folders(root)]
    if not folders or root.url in folders:
        reason = "one stage" if folders else "no stage below it"
        raise UserError(f"{root.url} is no run's root ({reason}): give the folder above the corpora's")
    needed = _needed(root, recipes, folders) if recipes else set(folders)
    known = frozenset(folders)
    # In order of name the files of a folder come together, so memory holds one folder's.
    for folder, entries in groupby(root.entries(), lambda file: _folder_of(file.name, known)):
        files = tuple(entries)
        if folder is None:
            garbage = _leftovers(files)
        elif folder in needed:
            garbage = _orphans(root, folder, files)
        else:
            garbage = iter([Garbage(GarbageKind.OLD, f"{folder}/", files)])
        for found in garbage:
            if max(file.modified for file in found.files) < before:
                yield found


def _folder_of(name: str, folders: frozenset[str]) -> str | None:
    """Return which of the stages' folders a file lies in."""
    for above in PurePosixPath(name).parents:
        if str(above) in folders:
            return str(above)
    return None


def _leftovers(files: Iterable[StoredFile]) -> Iterator[Garbage]:
    for file in files:
        if file.is_leftover:
            yield Garbage(GarbageKind.LEFTOVER, file.name, (file,))


def _orphans(root: Store, folder: str, files: Sequence[StoredFile]) -> Iterator[Garbage]:
    """Yield the files of a stage's folder that its receipts and its manifest do not name."""
    by_name = {file.name.removeprefix(f"{folder}/"): file for file in files}
    receipts: list[str] = []
    for name, file in by_name.items():
        if name.startswith(f"{RECEIPTS}/") and not file.is_leftover:
            receipts.append(name)
    done = {PurePosixPath(name).stem for name in receipts}
    try:
        named = _named_files(root.at(folder), done) | set(receipts)
    except DamagedRecordError:
        return  # What a damaged receipt names is not known: `dualtoken verify --repair` first.
    checkpoints = [file for name, file in by_name.items() if name.startswith(f"{CHECKPOINTS}/")]
    if checkpoints and MANIFEST_FILE in by_name:
        # As one: while a repair trains again, the youngest of them keeps all.
        yield Garbage(GarbageKind.CHECKPOINTS, f"{join(folder, CHECKPOINTS)}/", tuple(checkpoints))
    for name, file in by_name.items():
        if name.startswith(f"{CHECKPOINTS}/"):
            continue
        if file.is_leftover:
            yield Garbage(GarbageKind.LEFTOVER, file.name, (file,))
            continue
        if name in named or name.startswith(UNTRACKED):
            continue
        unit = PurePosixPath(name).name.partition(".")[0].removesuffix("_stats")
        belongs_to_unit = unit.isdecimal() or name.startswith(f"{LEDGERS}/")
        if belongs_to_unit and unit not in done:
            yield Garbage(GarbageKind.NO_RECEIPT, file.name, (file,), join(folder, receipt_name(unit)))
        else:
            yield Garbage(GarbageKind.UNNAMED, file.name, (file,))


def _named_files(store: Store, done: Iterable[str]) -> set[str]:
    """Return the files that a folder's records name, these records included but for the receipts."""
    named = {STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE}
    for receipt in iter_receipts(store, list(done)):
        named |= {file.name for file in receipt.files}
    manifest = read_manifest(store)
    if manifest:
        named |= {file.name for file in manifest.files}
    return named


def _needed(root: Store, recipes: Sequence[Recipe], folders: Iterable[str]) -> set[str]:
    """Return the folders that recipes refer to, and all that those were made from."""
    records: dict[str, StageRecord] = {}
    for folder in folders:
        records[folder] = StageRecord.read(root, join(folder, STAGE_FILE))
        get_stage(records[folder].stage)  # what a stage needs is not known where it is not declared
    needed: set[str] = set()
    for recipe in recipes:
        for stage in all_stages():
            needed |= _named_folders(stage.name, None, recipe.model_dump(), records)
        for planned in Planner(recipe).plan():
            needed |= _folders_of(root, planned, records)
    unfollowed = list(needed)
    while unfollowed:
        folder = unfollowed.pop()
        record = records[folder]
        inputs = input_folders(root.at(folder), record).values()
        made_from = {url.removeprefix(f"{root.url}/") for url in inputs}
        made_from |= _named_folders(record.stage, record.corpus, record.recipe, records)
        new = made_from & records.keys() - needed
        unfollowed += new
        needed |= new
    return needed


def _folders_of(root: Store, planned: PlannedStage, records: Mapping[str, StageRecord]) -> set[str]:
    """Return a planned stage's folder; while its inputs are unfinished, all folders of the stage."""
    if planned.job is not None:
        return {folder for folder in records if planned.job.folder == join(root.url, folder)}
    wanted = (planned.stage, planned.corpus)
    return {folder for folder, record in records.items() if (record.stage, record.corpus) == wanted}


def _named_folders(
    stage: str, corpus: str | None, recipe: Mapping[str, Any], folders: Iterable[str]
) -> set[str]:
    """Return which of the folders a stage's settings name, wherever the run was moved since."""
    corpora = list(recipe["corpora"]) if corpus is None else [corpus]
    named: set[str] = set()
    for key in get_stage(stage).names_folders:
        for name in corpora:
            place = _value(recipe, key, name)
            if place:
                ending = f"/{place.rstrip('/')}"
                named |= {folder for folder in folders if ending.endswith(f"/{folder}")}
    return named


def _value(recipe: Mapping[str, Any], key: str, corpus: str) -> str | None:
    """Return the value of a key such as `train.start_from`, or None; `{corpus}` stands for a name."""
    value: Any = recipe
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part.format(corpus=corpus))
    return value


def undecided(recipes: Iterable[Recipe]) -> list[str]:
    """Return the labels of stages whose fingerprint is not known before their inputs are finished."""
    labels: dict[str, None] = {}
    for recipe in recipes:
        for planned in Planner(recipe).plan():
            if planned.job is None:
                labels[planned.label] = None
    return list(labels)


def delete(root: Store, garbage: Iterable[Garbage]) -> list[Garbage]:
    """Delete garbage, and return what was left because it changed since it was listed.

    A folder goes in an order that leaves it, wherever this is killed, unfinished and found again.
    """
    left: list[Garbage] = []
    for found in garbage:
        if not _is_as_listed(root, found):
            left.append(found)
            continue
        for file in sorted(found.files, key=lambda file: _deletion_rank(file.name)):
            root.remove(file.name)
        if found.kind in _FOLDERS:
            root.remove_empty_folders(found.name.rstrip("/"))
    return left


def _is_as_listed(root: Store, garbage: Garbage) -> bool:
    """Tell whether garbage is what it was: a resumed run may have written the file anew, and its receipt."""
    if garbage.kind in _FOLDERS:
        return tuple(root.entries(garbage.name.rstrip("/"))) == garbage.files
    (listed,) = garbage.files
    now = root.entry(garbage.name)
    if now is None or (garbage.receipt and root.exists(garbage.receipt)):
        return False
    return now.bytes == listed.bytes and abs(now.modified - listed.modified) <= 1


def _deletion_rank(name: str) -> int:
    """Return a file's place in the order of deletion: the manifest, receipts, other files, `stage.json`."""
    path = PurePosixPath(name)
    if path.name == MANIFEST_FILE:
        return 0
    if path.parent.name == RECEIPTS:
        return 1
    if path.name == STAGE_FILE:
        return 3
    return 2


def totals(garbage: Iterable[Garbage]) -> dict[GarbageKind, tuple[int, int]]:
    """Return files and bytes by kind."""
    files: Counter[GarbageKind] = Counter()
    sizes: Counter[GarbageKind] = Counter()
    for found in garbage:
        files[found.kind] += len(found.files)
        sizes[found.kind] += found.bytes
    return {kind: (files[kind], sizes[kind]) for kind in GarbageKind if files[kind]}


def common_root(recipes: Sequence[Recipe]) -> Store:
    """Return the root that recipes share; raises `UserError` where they have several."""
    roots = {Store(recipe.root).url for recipe in recipes}
    if len(roots) > 1:
        raise UserError(f"the recipes have the roots {', '.join(sorted(roots))}: give one with --root")
    assert len(roots) == 1, "no recipe"
    return Store(roots.pop())
