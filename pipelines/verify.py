"""Reads datasets against their receipts, names every file that is not as committed, and restores what a unit can."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from infra.digests import digest
from infra.scratch import scratch_folder
from infra.storage import Store, join
from pipelines.captions import meta_path, meta_place, meta_record
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.executor import Executor, Say, Work
from pipelines.finish import finish
from pipelines.plan import Planner
from pipelines.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    FileRecord,
    Manifest,
    Receipt,
    clock_problem,
    content_line,
    done_units,
    hash_lines,
    receipt_name,
)
from pipelines.run import run_units
from pipelines.stage import StageJob
from pipelines.stage_folder import in_order, read_stage, root_of, stage_folders
from pipelines.tombstones import FORGOTTEN_FILE


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that is not as its receipt says."""

    folder: str
    name: str
    problem: str
    """missing, extra, truncated, altered, unreadable, unfinished or misdated, with what was seen."""
    unit: str | None
    """Whose work would restore it; None where no unit made it."""
    as_committed: bool = False
    """The file is as its receipt says, and wrong all the same: done again, it may well have other bytes."""

    @property
    def unfinished(self) -> bool:
        """Whether no more is wrong than that the stage has not ended."""
        return self.problem.startswith("unfinished")

    @property
    def misdated(self) -> bool:
        """Whether the moment that is noted is all that is wrong."""
        return self.problem.startswith("misdated")

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
    folders = list(stage_folders(Store(location)))
    if not folders:
        raise UserError(
            f"{location} holds no finished or begun stage (no {STAGE_FILE} below it): give a run's root, a corpus or a stage folder"
        )
    for folder in folders:
        yield verify_stage(Store(folder), folders)


def verify_stage(store: Store, apart: Collection[str] = ()) -> Verified:
    """Check one stage's folder; what a billion images need is a name and a size per file, and a line per checksum.

    Captions that it borrows from another folder are checked with it, unless that is one of those `apart`, which are verified on their own.
    """
    present = {name: size for name, size in store.files() if not name.startswith(UNTRACKED)}
    num_files, num_bytes, unknown = len(present), sum(present.values()), dict(present)
    receipts = [name for name in present if name.startswith(f"{RECEIPTS}/")]
    damaged: list[Finding] = []
    unreadable: list[Finding] = []
    lines: list[bytes] = []
    for name, data in store.read_many(receipts):
        unit = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
        try:
            receipt = Receipt.from_bytes(data)
        except ValidationError:
            unreadable.append(Finding(store.url, name, "unreadable: no receipt", unit))
            continue
        lines += map(content_line, receipt.files)
        if problem := clock_problem(receipt.finished_at):
            damaged.append(Finding(store.url, name, f"misdated: {problem}", unit))
        damaged += _check_borrowed(store, receipt, apart)
        damaged += _check_files(store, receipt.files, unit, present, unknown)
    manifest = _read_manifest(store)
    manifest_files = () if isinstance(manifest, Finding) else manifest.files
    lines += map(content_line, manifest_files)
    damaged += _check_files(store, manifest_files, None, present, unknown)
    for name in (STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE, *receipts):
        unknown.pop(name, None)
    extra = [Finding(store.url, name, "extra: no receipt names it", None) for name in unknown]
    return Verified(store.url, num_files, num_bytes, (*unreadable, *_check_manifest(store, manifest, lines), *damaged, *extra))


def _check_files(
    store: Store, files: Iterable[FileRecord], unit: str | None, present: dict[str, int], unknown: dict[str, int]
) -> Iterator[Finding]:
    """Check files that a receipt or the manifest names, and take them from those unknown."""
    for file in files:
        unknown.pop(file.name, None)
        if problem := check_file(store, file, present.get(file.name)):
            yield Finding(store.url, file.name, problem, unit)


def _check_borrowed(store: Store, receipt: Receipt, apart: Collection[str]) -> Iterator[Finding]:
    """Check the captions of a shard that lie in another dataset's folder, against the receipt there."""
    lender, name = meta_place(store, meta_path(receipt))
    if lender.url == store.url or lender.url in apart:
        return
    problem: str | None = "missing"
    try:
        _, file = meta_record(store, meta_path(receipt), receipt.unit)
        problem = check_file(lender, file, lender.size(name))
    except (FileNotFoundError, ValidationError):
        name = receipt_name(receipt.unit)
    if problem:
        yield Finding(lender.url, name, f"{problem} (the captions of {store.url})", receipt.unit)


def _read_manifest(store: Store) -> Manifest | Finding:
    """Return a stage's manifest, or why there is none."""
    try:
        return Manifest.from_bytes(store.read(MANIFEST_FILE))
    except FileNotFoundError:
        return Finding(store.url, MANIFEST_FILE, "unfinished: some units have no receipt yet", None)
    except ValidationError:
        return Finding(store.url, MANIFEST_FILE, "unreadable: no manifest", None)


def _check_manifest(store: Store, manifest: Manifest | Finding, lines: list[bytes]) -> Iterator[Finding]:
    if isinstance(manifest, Finding):
        yield manifest
        return
    if hash_lines(lines) != manifest.root_hash:
        yield Finding(store.url, MANIFEST_FILE, "altered: its root hash differs from the receipts'", None)
    if problem := clock_problem(manifest.last_finished_at, manifest.first_started_at):
        yield Finding(store.url, MANIFEST_FILE, f"misdated: {problem}", None)


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
    return sorted(damaged, key=lambda one: in_order(read_stage(Store(one.folder))))


def is_only_unfinished(checked: Verified) -> bool:
    """Tell whether all that is found is that a stage has not ended: running it is its own command's work."""
    return all(finding.unfinished for finding in checked.findings)


def repair(damaged: Verified, executor: Executor, say: Say) -> None:
    """Do the damaged units of a stage again, put what is missing or altered, and write a finished stage's manifest anew.

    Nothing stored is replaced before the same bytes as at first are made. Raises `UserError` where the stage's inputs are no longer
    what it was made from, `UnitsFailed` where a unit failed or gave other bytes.
    """
    store = Store(damaged.folder)
    if is_only_unfinished(damaged):
        say(f"{store.url} is unfinished, not damaged: `dualtoken run` goes on with it")
        return
    if elsewhere := sorted({finding.folder for finding in damaged.findings} - {store.url}):
        raise UserError(f"{store.url} has its captions in {elsewhere[0]}: run `dualtoken verify {elsewhere[0]} --repair` first")
    job = _job_of(store)
    ended = not any(finding.unfinished for finding in damaged.findings)
    again = {finding.unit for finding in damaged.findings if finding.unit and not finding.misdated}
    if ended:
        again |= {unit.id for unit in job.units} - done_units(store)
    restores = {unit: _committed(store, unit) for unit in again}
    if replaced := {finding.unit for finding in damaged.findings if finding.unit and finding.as_committed}:
        store.remove(MANIFEST_FILE)  # first, so that the stage is known to be unfinished if this is cut short
    for unit in replaced:
        store.remove(receipt_name(unit))
        del restores[unit]
    units = tuple(unit for unit in job.units if unit.id in again)
    run_units([Work(replace(job, restores=restores), units)] if units else [], executor, say)
    _redate(store, damaged)
    if ended:
        finish(job)
    for unit in sorted(again):
        say(f"restored unit {unit} of {damaged.folder}")


def _job_of(store: Store) -> StageJob:
    record = read_stage(store)
    recipe = Recipe.model_validate(record.recipe | {"root": root_of(store, record)})
    job = Planner(recipe).one(record.stage, record.corpus).job
    if job is None or job.fingerprint != record.fingerprint:
        raise UserError(f"{store.url} cannot be repaired: its inputs have changed or are unfinished; run `dualtoken run` instead")
    return job


def _redate(store: Store, damaged: Verified) -> None:
    """Set receipts that are of times to come to now; what they say of the files stays."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for unit in sorted({finding.unit for finding in damaged.findings if finding.unit and finding.misdated}):
        receipt = _committed(store, unit)
        if receipt and clock_problem(receipt.finished_at):
            store.put_bytes(receipt.model_copy(update={"finished_at": now}).to_bytes(), receipt_name(unit))


def _committed(store: Store, unit: str) -> Receipt | None:
    try:
        return Receipt.from_bytes(store.read(receipt_name(unit)))
    except (FileNotFoundError, ValidationError):
        return None
