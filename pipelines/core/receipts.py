"""Receipts: the small JSON files, written last and only if absent, that say a unit is done.

The outcome of a unit is its receipt, never an exit code or a cluster's opinion. A stage's folder holds:

- `stage.json`: what the stage is, written first
- `receipts/<unit>.json` and `ledger/<unit>.parquet`: a pair per unit
- the outputs
- `manifest.json`: written when every unit has its receipt; its root hash identifies the content
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dualtoken.infra.names import relative_name, single_name
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.errors import UserError

STAGE_FILE = "stage.json"
MANIFEST_FILE = "manifest.json"
RECEIPTS = "receipts"
LEDGERS = "ledger"
CHECKPOINTS = "checkpoints"
"""Folder that a training goes on from, until it is finished."""
CHECKPOINT_RECEIPT = "receipt.json"
"""File of a checkpoint's folder, which is written last."""
PICTURES = "logs/tensorboard/pictures"
"""Folder in a training's with pictures of samples alone: `forget` empties it."""
UNTRACKED = ("logs/", f"{CHECKPOINTS}/")
"""Folders with files that no receipt names: a run's own records, of use while and after it runs."""
MAX_CLOCK_SKEW = timedelta(minutes=15)
"""Allowed clock skew between machines; S3 servers refuse requests from beyond it."""


RelativeName = Annotated[str, AfterValidator(relative_name)]
"""Name of a file below a folder. Whoever wrote the record may be a stranger, so it leads nowhere else."""
SingleName = Annotated[str, AfterValidator(single_name)]
"""Such a name of one part: it becomes part of files' names."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class DamagedRecordError(UserError):
    """A record that cannot be read: it is damaged, of another version, or no record of ours."""


class Record(BaseModel):
    """A frozen JSON document."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    advice: ClassVar[str] = "take it from a copy"
    """What to do about a damaged one."""

    def to_bytes(self) -> bytes:
        """Return the document as it is stored."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str = "the record") -> Self:
        """Read a stored document; raises `DamagedRecordError`, which names its `place`."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise DamagedRecordError(
                f"{place} is not as it was written ({field}: {first['msg']}): {cls.advice}"
            ) from None

    @classmethod
    def read(cls, store: Store, name: str) -> Self:
        """Read a document of a store; raises FileNotFoundError, and `DamagedRecordError` likewise."""
        return cls.from_bytes(store.read(name), join(store.url, name))


class FileRecord(Record):
    """One output file; `name` is relative to the stage's folder."""

    name: RelativeName
    bytes: int
    sha256: Sha256
    xxh3_128: Xxh3


class Receipt(Record):
    """One unit's outcome."""

    advice: ClassVar[str] = "run `dualtoken verify --repair` on its stage's folder"

    stage: str
    corpus: SingleName | None
    unit: SingleName
    fingerprint: str
    attempt: str
    """UUID of the winning attempt; tells our commit from a concurrent one where the outcome was unclear."""
    rows: int
    """Samples in."""
    counts: dict[str, int]
    """Samples by status and reason; they add up to `rows`."""
    files: tuple[FileRecord, ...]
    facts: dict[str, Any]
    """JSON values that the stage adds, for later stages and the report."""
    finished_at: str
    """End of the unit: UTC, ISO 8601."""
    seconds: float
    """Time spent on the unit, its upload included."""
    code: str = ""
    """Hash of the sources that did the unit; empty where it is older than this field."""

    @property
    def rows_out(self) -> int:
        """Samples that went on."""
        return self.counts.get("ok", 0)


class StageRecord(Record):
    """Description of a stage's folder: enough to run any of its units again."""

    stage: str
    corpus: SingleName | None
    fingerprint: str
    identity: dict[str, Any]
    """Values that the fingerprint was made from."""
    inputs: dict[RelativeName, str]
    """Folders of earlier stages."""
    recipe: dict[str, Any]
    """Resolved recipe."""
    code: str = ""
    """Hash of the sources that began the folder; empty where it is older than this field."""
    commit: str = ""
    """Commit of those sources, where they had one."""


class Manifest(Record):
    """Summary of a finished stage, which later stages read instead of its receipts."""

    stage: str
    corpus: str | None
    fingerprint: str
    root_hash: str
    """Hash over the names and checksums of all outputs; equal content has an equal hash."""
    rows_in: int
    counts: dict[str, int]
    units: dict[SingleName, int]
    """Samples that went on, by unit of the next stage."""
    bytes: int
    seconds: float
    """Seconds of work, all units added up."""
    first_started_at: str
    """Start of the first unit: UTC, ISO 8601."""
    last_finished_at: str
    """End of the last unit, likewise."""
    version: int = 1
    """Version of the content; forgetting samples makes a new one."""
    lineage: str | None = None
    """Root hash of version 1, where this is a later one."""
    codes: tuple[str, ...] = ()
    """Hashes of the sources that did the units, in order; more than one where the code changed meanwhile."""
    files: tuple[FileRecord, ...]
    """Files of the stage as a whole, such as an index; those of units stand in their receipts."""
    details: dict[str, Any]
    """JSON values that the stage itself adds."""

    @property
    def lineage_hash(self) -> str:
        """Hash that later stages' fingerprints are made from; forgetting samples does not change it."""
        return self.lineage or self.root_hash

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first unit's start to the last one's end; pauses between two runs count too."""
        first = datetime.fromisoformat(self.first_started_at)
        last = datetime.fromisoformat(self.last_finished_at)
        return (last - first).total_seconds()


def receipt_name(unit: str) -> str:
    """Name a unit's receipt in its stage's folder."""
    return f"{RECEIPTS}/{unit}.json"


def iter_receipts(store: Store, units: Iterable[str] | None = None) -> Iterator[Receipt]:
    """Yield a stage's receipts in order of unit, or those of `units` in their order.

    A corpus may have more of them than memory holds.
    """
    if units is None:
        units = sorted(done_units(store))
    files = store.read_many(map(receipt_name, units))
    return (Receipt.from_bytes(data, join(store.url, name)) for name, data in files)


def read_receipts(store: Store) -> dict[str, Receipt]:
    """Return a stage's receipts by unit, in order of unit."""
    return {receipt.unit: receipt for receipt in iter_receipts(store)}


def done_units(store: Store) -> set[str]:
    """Return the units that have a receipt, without reading any."""
    units: set[str] = set()
    for name, _ in store.files(RECEIPTS):
        if name.endswith(".json"):
            units.add(name.removeprefix(f"{RECEIPTS}/").removesuffix(".json"))
    return units


def read_manifest(store: Store) -> Manifest | None:
    """Return a stage's manifest, or None while it is unfinished."""
    try:
        return Manifest.read(store, MANIFEST_FILE)
    except FileNotFoundError:
        return None


def root_hash(files: Iterable[FileRecord]) -> str:
    """Hash the names and checksums of files, in order of name."""
    return hash_lines(map(content_line, files))


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


def receipt_mismatch(receipt: Receipt, unit: str, expected_fingerprint: str | None) -> str | None:
    """Return why a receipt does not belong to this unit of this folder, or None where it does.

    `expected_fingerprint` is the folder's, None where it is unknown.
    """
    is_other_unit = receipt.unit != unit
    is_other_folder = expected_fingerprint is not None and receipt.fingerprint != expected_fingerprint
    if is_other_unit or is_other_folder:
        return f"it is of the unit {receipt.unit} of {receipt.fingerprint}"
    total = sum(receipt.counts.values())
    if receipt.counts and total != receipt.rows:
        return f"it counts {total} samples, {receipt.rows} came in"
    return None


def clock_problem(finished_at: str, started_at: str | None = None) -> str | None:
    """Return what is wrong with the start and end of something finished, or None.

    This machine's clock may be the cause.
    """
    finished = datetime.fromisoformat(finished_at)
    if started_at is not None and finished < datetime.fromisoformat(started_at):
        return f"finished at {finished_at}, before it was started at {started_at}"
    if finished > datetime.now(UTC) + MAX_CLOCK_SKEW:
        return f"finished at {finished_at}, which is yet to come by this machine's clock"
    return None
