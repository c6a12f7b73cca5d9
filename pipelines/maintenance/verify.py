"""Reads datasets against their receipts, and names every file that is not as committed."""

from collections.abc import Collection, Iterable, Iterator

from pydantic import ValidationError

from dualtoken.infra.digests import digest_stream
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    FileRecord,
    Manifest,
    Receipt,
    StageRecord,
    clock_problem,
    content_line,
    fingerprint,
    hash_lines,
    receipt_mismatch,
    receipt_name,
)
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.core.tombstones import FORGOTTEN_FILE
from dualtoken.pipelines.core.totals import Totals
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.findings import Finding, FindingKind, Problem, VerifiedFolder
from dualtoken.pipelines.runtime.stage_folder import input_folders, read_stage, stage_folders
from dualtoken.pipelines.tokens.captions import meta_path, meta_record, resolve_meta_path


def verify(location: str) -> Iterator[VerifiedFolder]:
    """Check every stage's folder at or below a path or URL, each file read once, several at a time.

    Raises `UserError` where there is none.
    """
    folders = list(stage_folders(Store(location), nameless=True))
    if not folders:
        raise UserError(
            f"{location} holds no finished or begun stage (no {STAGE_FILE} below it): give a run's root, a corpus or a stage folder"
        )
    finished = {place for folder in folders for place in _inputs(Store(folder))}
    for folder in folders:
        yield verify_stage(Store(folder), folders, was_finished=folder in finished)


def _inputs(store: Store) -> Iterable[str]:
    """Return the folders that a stage's was made from, as far as it says so; only finished ones are made something from."""
    try:
        return input_folders(store, read_stage(store)).values()
    except UserError:
        return ()


def verify_stage(store: Store, apart: Collection[str] = (), *, was_finished: bool = False) -> VerifiedFolder:
    """Check one stage's folder; what a billion images need is a name and a size per file, and a line per checksum.

    Captions that it borrows from another folder are checked with it, unless that is one of those `apart`, which are verified on their own.
    Without a manifest it is unfinished, unless it is known to have been finished.
    """
    present = {name: size for name, size in store.files() if not name.startswith(UNTRACKED)}
    without = (
        Problem(FindingKind.MISSING, "a later stage was made from it")
        if was_finished
        else Problem(FindingKind.UNFINISHED, "no manifest yet")
    )
    check = _StageCheck(store, present, apart, without)
    return VerifiedFolder(store.url, len(present), sum(present.values()), tuple(check.findings()))


class _StageCheck:
    """One look at a stage's folder; `present` has its files' sizes by name."""

    def __init__(
        self, store: Store, present: dict[str, int], apart: Collection[str], without: Problem
    ) -> None:
        self._store, self._present, self._apart, self._without = store, present, apart, without
        self._totals, self._lines = Totals(), list[bytes]()
        self._fingerprint: str | None = None
        """Of all in the folder; None where no `stage.json` tells."""
        self._unreadable: list[Finding] = []
        self._of_receipts: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return what is wrong: first records that say nothing, then the files that the others name."""
        manifest = self._manifest()
        of_stage = [self._finding(STAGE_FILE, problem) for problem in self._stage_problems()]
        damaged, named = [], {STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE}
        for file, unit, problem in map_ahead(self._look, self._named(manifest)):
            named.add(file.name)
            if problem:
                damaged.append(self._finding(file.name, problem, unit))
        extra = [name for name in self._present if name not in named and not name.startswith(f"{RECEIPTS}/")]
        of_manifest = [self._finding(MANIFEST_FILE, problem) for problem in self._manifest_problems(manifest)]
        nameless = [self._finding(name, Problem(FindingKind.EXTRA, "no receipt names it")) for name in extra]
        return [*self._unreadable, *of_stage, *of_manifest, *self._of_receipts, *damaged, *nameless]

    def _finding(self, name: str, problem: Problem, unit: str | None = None) -> Finding:
        return Finding(self._store.url, name, problem, unit)

    def _look(self, one: tuple[FileRecord, str | None]) -> tuple[FileRecord, str | None, Problem | None]:
        file, unit = one
        return file, unit, check_file(self._store, file, self._present.get(file.name))

    def _named(self, manifest: Manifest | Problem) -> Iterator[tuple[FileRecord, str | None]]:
        """Yield all files that receipts and the manifest name, and note what the receipts come to."""
        names = [name for name in self._present if name.startswith(f"{RECEIPTS}/")]
        for name, data in self._store.read_many(names):
            unit = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
            try:
                receipt = Receipt.from_bytes(data)
            except ValidationError:
                self._unreadable.append(
                    self._finding(name, Problem(FindingKind.UNREADABLE, "no receipt"), unit)
                )
                continue
            self._totals.add(receipt)
            self._lines += map(content_line, receipt.files)
            self._of_receipts += [
                self._finding(name, problem, unit) for problem in self._receipt_problems(receipt, unit)
            ]
            self._of_receipts += _check_borrowed(self._store, receipt, self._apart)
            yield from ((file, unit) for file in receipt.files)
        of_stage = () if isinstance(manifest, Problem) else manifest.files
        self._lines += map(content_line, of_stage)
        yield from ((file, None) for file in of_stage)

    def _receipt_problems(self, receipt: Receipt, unit: str) -> Iterator[Problem]:
        if problem := receipt_mismatch(receipt, unit, self._fingerprint):
            yield Problem(FindingKind.ALTERED, problem)
        if problem := clock_problem(receipt.finished_at):
            yield Problem(FindingKind.MISDATED, problem)

    def _stage_problems(self) -> Iterator[Problem]:
        try:
            record = StageRecord.from_bytes(self._store.read(STAGE_FILE))
        except FileNotFoundError:
            yield Problem(FindingKind.MISSING, "the stage's command, run with its recipe, writes it again")
        except ValidationError:
            yield Problem(FindingKind.UNREADABLE, "damaged, or of another version of dualtoken")
        else:
            if (found := fingerprint(record.identity)) != record.fingerprint:
                yield Problem(
                    FindingKind.ALTERED,
                    f"its identity has the fingerprint {found}, it says {record.fingerprint}",
                )
            else:
                self._fingerprint = found

    def _manifest(self) -> Manifest | Problem:
        """Return the stage's manifest, or why there is none."""
        try:
            return Manifest.from_bytes(self._store.read(MANIFEST_FILE))
        except FileNotFoundError:
            return self._without
        except ValidationError:
            return Problem(FindingKind.UNREADABLE, "no manifest")

    def _manifest_problems(self, manifest: Manifest | Problem) -> Iterator[Problem]:
        if isinstance(manifest, Problem):
            yield manifest
            return
        if self._fingerprint not in {None, manifest.fingerprint}:
            yield Problem(FindingKind.ALTERED, f"it is of {manifest.fingerprint}")
        if hash_lines(self._lines) != manifest.root_hash:
            yield Problem(FindingKind.ALTERED, "its root hash differs from the receipts'")
        elif (manifest.counts, manifest.rows_in) != (self._totals.counts, self._totals.rows):
            yield Problem(
                FindingKind.ALTERED,
                "its counts are not the sum of the receipts', which `--deep` compares with the ledgers",
            )
        if problem := clock_problem(manifest.last_finished_at, manifest.first_started_at):
            yield Problem(FindingKind.MISDATED, problem)


def _check_borrowed(store: Store, receipt: Receipt, apart: Collection[str]) -> Iterable[Finding]:
    """Check the captions of a shard that lie in another dataset's folder, against the receipt there."""
    lender, name = resolve_meta_path(store, meta_path(receipt))
    if lender.url == store.url or lender.url in apart:
        return
    problem: Problem | None = Problem(FindingKind.MISSING)
    try:
        _, file = meta_record(store, meta_path(receipt), receipt.unit)
        problem = check_file(lender, file, lender.size(name))
    except (FileNotFoundError, ValidationError):
        name = receipt_name(receipt.unit)
    if problem:
        seen = "; ".join(filter(None, (problem.seen, f"the captions of {store.url}")))
        yield Finding(lender.url, name, Problem(problem.kind, seen), receipt.unit)


def check_file(store: Store, file: FileRecord, size: int | None) -> Problem | None:
    """Return how a file of `size` bytes differs from its record, or None; None for a size is no file."""
    if size is None:
        return Problem(FindingKind.MISSING)
    if size != file.bytes:
        return Problem(
            FindingKind.TRUNCATED if size < file.bytes else FindingKind.ALTERED,
            f"{size} bytes, its receipt says {file.bytes}",
        )
    with store.fs.open(store.path(file.name), "rb") as stream:
        found = digest_stream(stream)
    if found.sha256 == file.sha256:
        return None
    return Problem(FindingKind.ALTERED, f"sha256 {found.sha256[:12]}, its receipt says {file.sha256[:12]}")
