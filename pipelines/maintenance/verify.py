"""Verifies datasets against their receipts, and names every file that is not as committed."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from dualtoken.infra.digests import digest_stream
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    UNTRACKED,
    DamagedRecordError,
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
            f"{location} holds no finished or begun stage (no {STAGE_FILE} below it): "
            "give a run's root, a corpus, a stage's folder or a recipe"
        )
    yield from verify_folders(folders)


def verify_folders(folders: Sequence[str]) -> Iterator[VerifiedFolder]:
    """Check stages' folders, likewise."""
    inputs_of_others: set[str] = set()
    for folder in folders:
        inputs_of_others.update(_input_urls(Store(folder)))
    for folder in folders:
        yield verify_stage(Store(folder), folders, was_finished=folder in inputs_of_others)


def _input_urls(store: Store) -> Iterable[str]:
    """Return the folders that a stage was made from, as far as it says so: all were finished once."""
    try:
        return input_folders(store, read_stage(store)).values()
    except UserError:
        return ()


def verify_stage(store: Store, apart: Collection[str] = (), *, was_finished: bool = False) -> VerifiedFolder:
    """Check one stage's folder; memory holds a name and a size per file, and a line per checksum.

    Captions that it shares with another folder are checked with it, unless that is one of those `apart`,
    which are verified on their own. Without a manifest it is unfinished, unless it is known to have been
    finished.
    """
    present: dict[str, int] = {}
    for name, size in store.files():
        if not name.startswith(UNTRACKED):
            present[name] = size
    no_manifest = Problem(FindingKind.UNFINISHED, "no manifest yet")
    if was_finished:
        no_manifest = Problem(FindingKind.MISSING, "a later stage was made from it")
    check = _StageCheck(store, present, apart, no_manifest)
    return VerifiedFolder(store.url, len(present), sum(present.values()), tuple(check.findings()))


class _NamedFile(NamedTuple):
    """A file that a record names, and the unit that wrote it."""

    file: FileRecord
    unit: str | None


class _StageCheck:
    """Checks one stage's folder; `present` has its files' sizes by name."""

    def __init__(
        self, store: Store, present: dict[str, int], apart: Collection[str], no_manifest: Problem
    ) -> None:
        self._store = store
        self._present = present
        self._apart = apart
        self._no_manifest = no_manifest
        self._totals = Totals()
        self._lines: list[bytes] = []
        """Lines of the root hash."""
        self._fingerprint: str | None = None
        """Fingerprint of all in the folder; None where no `stage.json` tells."""
        self._unreadable: list[Finding] = []
        self._receipt_findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return what is wrong: unreadable records first, then records, then the files that they name."""
        manifest = self._manifest()
        stage_findings = [self._finding(STAGE_FILE, problem) for problem in self._stage_problems()]
        named = {STAGE_FILE, MANIFEST_FILE, FORGOTTEN_FILE}
        damaged: list[Finding] = []
        for name, unit, problem in map_ahead(self._check_named, self._named_files(manifest)):
            named.add(name)
            if problem:
                damaged.append(self._finding(name, problem, unit))
        manifest_findings = [
            self._finding(MANIFEST_FILE, problem) for problem in self._manifest_problems(manifest)
        ]
        return [
            *self._unreadable,
            *stage_findings,
            *manifest_findings,
            *self._receipt_findings,
            *damaged,
            *self._extra_files(named),
        ]

    def _finding(self, name: str, problem: Problem, unit: str | None = None) -> Finding:
        return Finding(self._store.url, name, problem, unit)

    def _check_named(self, named: _NamedFile) -> tuple[str, str | None, Problem | None]:
        size = self._present.get(named.file.name)
        return named.file.name, named.unit, check_file(self._store, named.file, size)

    def _named_files(self, manifest: Manifest | Problem) -> Iterator[_NamedFile]:
        """Read the receipts one by one, and yield all files that they and the manifest name."""
        names = [name for name in self._present if name.startswith(f"{RECEIPTS}/")]
        for name, data in self._store.read_many(names):
            unit = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
            try:
                receipt = Receipt.from_bytes(data, join(self._store.url, name))
            except DamagedRecordError:
                problem = Problem(FindingKind.UNREADABLE, "no receipt")
                self._unreadable.append(self._finding(name, problem, unit))
                continue
            self._add_receipt(name, receipt, unit)
            for file in receipt.files:
                yield _NamedFile(file, unit)
        if isinstance(manifest, Manifest):
            for file in manifest.files:
                self._lines.append(content_line(file))
                yield _NamedFile(file, None)

    def _add_receipt(self, name: str, receipt: Receipt, unit: str) -> None:
        """Count a receipt, and keep what is wrong with it."""
        self._totals.add(receipt)
        for file in receipt.files:
            self._lines.append(content_line(file))
        for problem in self._receipt_problems(receipt, unit):
            self._receipt_findings.append(self._finding(name, problem, unit))
        self._receipt_findings += _check_shared_captions(self._store, receipt, self._apart)

    def _extra_files(self, named: Collection[str]) -> Iterator[Finding]:
        for name in self._present:
            if name not in named and not name.startswith(f"{RECEIPTS}/"):
                yield self._finding(name, Problem(FindingKind.EXTRA, "no receipt names it"))

    def _receipt_problems(self, receipt: Receipt, unit: str) -> Iterator[Problem]:
        mismatch = receipt_mismatch(receipt, unit, self._fingerprint)
        if mismatch:
            yield Problem(FindingKind.ALTERED, mismatch)
        misdated = clock_problem(receipt.finished_at)
        if misdated:
            yield Problem(FindingKind.MISDATED, misdated)

    def _stage_problems(self) -> Iterator[Problem]:
        try:
            record = StageRecord.read(self._store, STAGE_FILE)
        except FileNotFoundError:
            yield Problem(FindingKind.MISSING, "the stage's command, run with its recipe, writes it again")
            return
        except DamagedRecordError:
            yield Problem(FindingKind.UNREADABLE, "damaged, or of another version of dualtoken")
            return
        found = fingerprint(record.identity)
        if found == record.fingerprint:
            self._fingerprint = found
        else:
            difference = f"its identity has the fingerprint {found}, it says {record.fingerprint}"
            yield Problem(FindingKind.ALTERED, difference)

    def _manifest(self) -> Manifest | Problem:
        """Return the stage's manifest, or why there is none."""
        try:
            return Manifest.read(self._store, MANIFEST_FILE)
        except FileNotFoundError:
            return self._no_manifest
        except DamagedRecordError:
            return Problem(FindingKind.UNREADABLE, "no manifest")

    def _manifest_problems(self, manifest: Manifest | Problem) -> Iterator[Problem]:
        if isinstance(manifest, Problem):
            yield manifest
            return
        if self._fingerprint not in {None, manifest.fingerprint}:
            yield Problem(FindingKind.ALTERED, f"it is of {manifest.fingerprint}")
        if hash_lines(self._lines) != manifest.root_hash:
            yield Problem(FindingKind.ALTERED, "its root hash differs from the receipts'")
        elif manifest.counts != self._totals.counts or manifest.rows_in != self._totals.rows:
            yield Problem(
                FindingKind.ALTERED,
                "its counts are not the sum of the receipts', which `--deep` compares with the ledgers",
            )
        misdated = clock_problem(manifest.last_finished_at, manifest.first_started_at)
        if misdated:
            yield Problem(FindingKind.MISDATED, misdated)


def _check_shared_captions(store: Store, receipt: Receipt, apart: Collection[str]) -> Iterable[Finding]:
    """Check the captions of a shard that lie in another dataset's folder, against the receipt there."""
    source, name = resolve_meta_path(store, meta_path(receipt))
    if source.url == store.url or source.url in apart:
        return
    problem: Problem | None = Problem(FindingKind.MISSING)
    try:
        _, file = meta_record(store, meta_path(receipt), receipt.unit)
        problem = check_file(source, file, source.size(name))
    except (FileNotFoundError, DamagedRecordError):
        name = receipt_name(receipt.unit)
    if problem:
        owner = f"the captions of {store.url}"
        details = f"{problem.details}; {owner}" if problem.details else owner
        yield Finding(source.url, name, Problem(problem.kind, details), receipt.unit)


def check_file(store: Store, file: FileRecord, size: int | None) -> Problem | None:
    """Return how a file of `size` bytes differs from its record, or None; None for a size is no file."""
    if size is None:
        return Problem(FindingKind.MISSING)
    if size != file.bytes:
        kind = FindingKind.TRUNCATED if size < file.bytes else FindingKind.ALTERED
        return Problem(kind, f"{size} bytes, its receipt says {file.bytes}")
    with store.open(file.name) as stream:
        found = digest_stream(stream)
    if found.sha256 == file.sha256:
        return None
    return Problem(FindingKind.ALTERED, f"sha256 {found.sha256[:12]}, its receipt says {file.sha256[:12]}")
