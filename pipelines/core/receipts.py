"""Receipts: the small JSON files, written last and only if absent, that say a unit is done.

The outcome of a unit is its receipt, never an exit code or a cluster's opinion. A stage's folder holds
`stage.json` (what it is, written first), `receipts/<unit>.json`, `ledger/<unit>.parquet`, the outputs, and
`manifest.json` (written when every unit has its receipt), whose root hash stands for the content.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from dualtoken.infra.storage import Store

STAGE_FILE = "stage.json"
MANIFEST_FILE = "manifest.json"
RECEIPTS = "receipts"
LEDGERS = "ledger"
UNTRACKED = ("logs/", "checkpoints/")
"""Folders whose files no receipt names: a run's own records, of use while and after it runs."""
MAX_CLOCK_SKEW = timedelta(minutes=15)
"""That two machines' clocks may be apart; S3 servers refuse requests from beyond it."""


class Record(BaseModel):
    """A frozen JSON document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Return the document as it is stored."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a stored document."""
        return cls.model_validate_json(data)


class FileRecord(Record):
    """One output file; `name` is relative to the stage's folder."""

    name: str
    bytes: int
    sha256: str
    xxh3_128: str


class Receipt(Record):
    """One unit's outcome."""

    stage: str
    corpus: str | None
    unit: str
    fingerprint: str
    attempt: str
    """Of the try that won, so that an unclear commit can be told from another's."""
    rows: int
    """Samples in."""
    counts: dict[str, int]
    """Samples by status and reason; they add up to `rows`."""
    files: tuple[FileRecord, ...]
    facts: dict[str, Any]
    finished_at: str
    """UTC, ISO 8601."""
    seconds: float
    """Spent on the unit, its upload included."""

    @property
    def rows_out(self) -> int:
        """Samples that went on."""
        return self.counts.get("ok", 0)


class StageRecord(Record):
    """What a stage's folder is: enough to run any of its units again."""

    stage: str
    corpus: str | None
    fingerprint: str
    identity: dict[str, Any]
    """All that went into the fingerprint."""
    inputs: dict[str, str]
    """Folders of earlier stages."""
    recipe: dict[str, Any]
    """The resolved recipe."""


class Manifest(Record):
    """A finished stage: what later stages read instead of its receipts."""

    stage: str
    corpus: str | None
    fingerprint: str
    root_hash: str
    """Over the names and checksums of all outputs; equal content has an equal hash."""
    rows_in: int
    counts: dict[str, int]
    units: dict[str, int]
    """Samples that went on, by unit of the next stage."""
    bytes: int
    seconds: float
    """Of work, all units added up."""
    first_started_at: str
    last_finished_at: str
    version: int = 1
    """Of the content: one more each time that samples were forgotten."""
    lineage: str | None = None
    """The root hash of version 1, where this is a later one."""

    files: tuple[FileRecord, ...]
    """Of the stage as a whole, such as an index; those of units stand in their receipts."""
    details: dict[str, Any]
    """What the stage itself adds."""

    @property
    def lineage_hash(self) -> str:
        """What later steps' fingerprints are made from: samples that are forgotten change no fingerprint."""
        return self.lineage or self.root_hash

    @property
    def wall_seconds(self) -> float:
        """From the first unit's start to the last one's end; pauses between two runs count too."""
        first, last = (
            datetime.fromisoformat(moment) for moment in (self.first_started_at, self.last_finished_at)
        )
        return (last - first).total_seconds()


def receipt_name(unit: str) -> str:
    """Name a unit's receipt in its stage's folder."""
    return f"{RECEIPTS}/{unit}.json"


def iter_receipts(store: Store, units: Iterable[str] | None = None) -> Iterator[Receipt]:
    """Yield a stage's receipts, or those of some units, in order of unit; a corpus may have more than memory holds."""
    names = map(receipt_name, sorted(done_units(store)) if units is None else units)
    return (Receipt.from_bytes(data) for _, data in store.read_many(names))


def read_receipts(store: Store) -> dict[str, Receipt]:
    """Return a stage's receipts by unit, in order of unit."""
    return {receipt.unit: receipt for receipt in iter_receipts(store)}


def done_units(store: Store) -> set[str]:
    """Return the units that have a receipt, without reading any."""
    return {
        name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
        for name, _ in store.files(RECEIPTS)
        if name.endswith(".json")
    }


def read_manifest(store: Store) -> Manifest | None:
    """Return a stage's manifest, or None while it is unfinished."""
    try:
        return Manifest.from_bytes(store.read(MANIFEST_FILE))
    except FileNotFoundError:
        return None


def root_hash(files: Iterable[FileRecord]) -> str:
    """Hash the names and checksums of files, in order of name."""
    return hash_lines(content_line(file) for file in files)


def content_line(file: FileRecord) -> bytes:
    """Return a file's line of the root hash."""
    return f"{file.name} {file.sha256}\n".encode()


def hash_lines(lines: Iterable[bytes]) -> str:
    """Hash lines in their order as text."""
    sha = hashlib.sha256()
    for line in sorted(lines):  # UTF-8 sorts as text does
        sha.update(line)
    return sha.hexdigest()


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of all that decides an output."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def receipt_mismatch(receipt: Receipt, unit: str, print_: str | None) -> str | None:
    """Return why a receipt is not that of a unit of the folder with a fingerprint, if this is known, or None."""
    if receipt.unit != unit or (print_ is not None and receipt.fingerprint != print_):
        return f"it is of the unit {receipt.unit} of {receipt.fingerprint}"
    if receipt.counts and (total := sum(receipt.counts.values())) != receipt.rows:
        return f"it counts {total} samples, {receipt.rows} came in"
    return None


def clock_problem(finished_at: str, started_at: str | None = None) -> str | None:
    """Return what is wrong with the moments of something finished, of which this machine's clock may be the cause, or None."""
    finished = datetime.fromisoformat(finished_at)
    if started_at is not None and finished < datetime.fromisoformat(started_at):
        return f"finished at {finished_at}, before it was started at {started_at}"
    if finished > datetime.now(UTC) + MAX_CLOCK_SKEW:
        return f"finished at {finished_at}, which is yet to come by this machine's clock"
    return None
