"""Reads datasets against their receipts, names every file that is not as committed, and restores what a unit can."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.storage import Store, digest, join, scratch_folder
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.executor import Executor, Say
from pipelines.plan import Planner
from pipelines.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    FileRecord,
    Manifest,
    Receipt,
    StageRecord,
    receipt_name,
    root_hash,
)
from pipelines.run import run_planned
from pipelines.steps import STEPS
from pipelines.tombstones import FORGOTTEN_FILE


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that is not as its receipt says."""

    folder: str
    name: str
    problem: str
    """missing, extra, truncated, altered, unreadable or unfinished, with what was seen."""
    unit: str | None
    """Whose work would restore it; None where no unit made it."""
    as_committed: bool = False
    """The file is as its receipt says, and wrong all the same: done again, it may well have other bytes."""

    def __str__(self) -> str:
        return f"{join(self.folder, self.name)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of one stage's folder came to."""

    folder: str
    files: int
    bytes: int
    findings: tuple[Finding, ...]


def verify(location: str) -> Iterator[Verified]:
    """Check every stage's folder at or below a path or URL, each file read once.

    Raises `UserError` where there is none.
    """
    top = Store(location)
    folders = [join(top.url, name).removesuffix(f"/{STAGE_FILE}") for name, _ in top.files() if name.split("/")[-1] == STAGE_FILE]
    if not folders:
        raise UserError(
            f"{location} holds no finished or begun stage (no {STAGE_FILE} below it): give a run's root, a corpus or a stage folder"
        )
    for folder in folders:
        yield verify_stage(Store(folder))


def verify_stage(store: Store) -> Verified:
    """Check one stage's folder."""
    present = {name: size for name, size in store.files() if not name.startswith(UNTRACKED)}
    findings: list[Finding] = []
    receipts: list[Receipt] = []
    for name in [name for name in present if name.startswith(f"{RECEIPTS}/")]:
        unit = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
        try:
            receipts.append(Receipt.from_bytes(store.read(name)))
        except ValidationError:
            findings.append(Finding(store.url, name, "unreadable: no receipt", unit))
    expected = {file.name: (file, receipt.unit) for receipt in receipts for file in receipt.files}
    findings += _check_manifest(store, receipts, present)
    manifest_files = _manifest_files(store, present)
    for file, unit in [*expected.values(), *((file, None) for file in manifest_files)]:
        if problem := check_file(store, file, present.get(file.name)):
            findings.append(Finding(store.url, file.name, problem, unit))
    known = {STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE, *expected, *(file.name for file in manifest_files)}
    extra = [name for name in present if name not in known and not name.startswith(f"{RECEIPTS}/")]
    findings += [Finding(store.url, name, "extra: no receipt names it", None) for name in extra]
    return Verified(store.url, len(present), sum(present.values()), tuple(findings))


def _manifest_files(store: Store, present: dict[str, int]) -> tuple[FileRecord, ...]:
    try:
        return Manifest.from_bytes(store.read(MANIFEST_FILE)).files if MANIFEST_FILE in present else ()
    except ValidationError:
        return ()


def _check_manifest(store: Store, receipts: list[Receipt], present: dict[str, int]) -> Iterator[Finding]:
    if MANIFEST_FILE not in present:
        yield Finding(store.url, MANIFEST_FILE, "unfinished: some units have no receipt yet", None)
        return
    try:
        manifest = Manifest.from_bytes(store.read(MANIFEST_FILE))
    except ValidationError:
        yield Finding(store.url, MANIFEST_FILE, "unreadable: no manifest", None)
        return
    files = [file for receipt in receipts for file in receipt.files] + list(manifest.files)
    if root_hash(files) != manifest.root_hash:
        yield Finding(store.url, MANIFEST_FILE, "altered: its root hash differs from the receipts'", None)


def check_file(store: Store, file: FileRecord, size: int | None) -> str | None:
    """Return how a file of `size` bytes differs from its record, or None; None for a size is no file."""
    if size is None:
        return "missing"
    if size != file.bytes:
        return f"{'truncated' if size < file.bytes else 'altered'}: {size} bytes, its receipt says {file.bytes}"
    with scratch_folder() as scratch:
        found = digest(store.local_copy(file.name, Path(scratch)))
    return None if found.sha256 == file.sha256 else f"altered: sha256 {found.sha256[:12]}, its receipt says {file.sha256[:12]}"


def in_order_of_work(damaged: Iterable[Verified]) -> list[Verified]:
    """Sort folders so that what others are made from is restored before them."""
    order = list(STEPS)
    return sorted(damaged, key=lambda one: order.index(StageRecord.from_bytes(Store(one.folder).read(STAGE_FILE)).stage))


def repair(damaged: Verified, executor: Executor, say: Say) -> None:
    """Run again the units whose files are not as committed, and write the manifest anew.

    Raises `UserError` where the stage's inputs are no longer what it was made from.
    """
    store = Store(damaged.folder)
    record = StageRecord.from_bytes(store.read(STAGE_FILE))
    steps_below_root = STEPS[record.stage].folder.count("/") + 2
    root = store.url.rsplit("/", steps_below_root)[0]
    recipe = Recipe.model_validate(record.recipe | {"root": root})
    planned = Planner(recipe).one(record.stage, record.corpus)
    if planned.job is None or planned.job.fingerprint != record.fingerprint:
        raise UserError(f"{damaged.folder} cannot be repaired: its inputs have changed or are unfinished; run `dualtoken run` instead")
    before = {finding.unit: _committed(store, finding.unit) for finding in damaged.findings if finding.unit}
    wrong_already = {finding.unit for finding in damaged.findings if finding.as_committed}
    store.remove(MANIFEST_FILE)
    for unit, files in before.items():
        for file in files:
            store.remove(file.name)
        store.remove(receipt_name(unit))
    run_planned([Planner(recipe).one(record.stage, record.corpus)], executor, say)
    for unit, files in before.items():
        if files and unit not in wrong_already and (changed := set(_committed(store, unit)) ^ set(files)):
            store.remove(MANIFEST_FILE)
            store.remove(receipt_name(unit))
            raise UserError(f"{join(store.url, min(file.name for file in changed))}: the unit gave other bytes than it did first")
        say(f"restored unit {unit} of {damaged.folder}")


def _committed(store: Store, unit: str) -> tuple[FileRecord, ...]:
    try:
        return Receipt.from_bytes(store.read(receipt_name(unit))).files
    except (FileNotFoundError, ValidationError):
        return ()
