"""The files of a nightly's history, each written once."""

import json
import os
import socket
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.config.nightly import ScheduleConfig
from dualtoken.pipelines.core.receipts import Record, RelativeName, Sha256, SingleName
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import Verdict
from dualtoken.pipelines.evaluation.summary import Direction, Environment

SCHEMA = 1
"""Version of these records; a newer one is refused."""

SeriesState = Literal["too_few", "ok", "improved", "suspected", "regressed", "drifted"]
VerdictState = Literal[
    "incomplete",
    "incomparable",
    "evaluator-changed",
    "ok",
    "improved",
    "suspected",
    "regressed",
    "drifted",
]


def stamp(moment: datetime) -> str:
    """Write a time as records have it: UTC, ISO 8601."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def moment(text: str) -> datetime:
    """Read a record's time."""
    return datetime.fromisoformat(text)


def one_line(error: BaseException) -> str:
    """Return an error as a record keeps it: on one line, without secrets of URLs."""
    text = " ".join(str(error).split())
    return redacted(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:2000]


class HistoryRecord(Record):
    """A file of a history."""

    advice: ClassVar[str] = "take the file from a copy of the history, or move it away"

    schema_version: int = SCHEMA

    @classmethod
    def from_bytes(cls, data: bytes, place: str = "the record") -> Self:
        """Read a stored document; raises `UserError` for a newer schema, `DamagedRecordError` likewise."""
        try:
            written = json.loads(data)
        except ValueError:
            written = None
        version = written.get("schema_version") if isinstance(written, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            raise UserError(
                f"{place} is of schema {version}, and this dualtoken reads up to {SCHEMA}: update dualtoken"
            )
        return super().from_bytes(data, place)


class SpecRecord(HistoryRecord):
    """A spec that is in force from a moment on."""

    previous: str | None
    """Hash of the spec before it."""
    since: str
    """Moment from which its schedule holds; the first spec's holds from the beginning."""
    schedule: ScheduleConfig
    spec: dict[str, Any]
    """The whole spec, without secrets."""


class DecisionRecord(HistoryRecord):
    """What a person decided."""

    who: str
    reason: str = Field(min_length=1)
    decided_at: str


class PauseRecord(DecisionRecord):
    """Nights that nobody expects, from the first to the last."""

    first: date
    last: date


class BaselineRecord(DecisionRecord):
    """A night that later ones are compared with."""

    night: SingleName
    evaluations: dict[str, str]
    """Fingerprint of the evaluation of each subject."""


class AckRecord(DecisionRecord):
    """A step of a series that a person knows of."""

    series: str
    """`<subject>/<set>/<protocol>/<metric>`."""
    night: SingleName


class OwnerRecord(HistoryRecord):
    """Something that a process began."""

    started_at: str
    host: str
    pid: int
    token: str
    """Random mark by which the owner knows its own record."""

    @property
    def where(self) -> str:
        """Name the process for people."""
        return f"process {self.pid} on {self.host}"

    def is_dead_here(self) -> bool:
        """Tell whether the owner was a process of this machine that has ended."""
        return self.host == socket.gethostname() and not Path(f"/proc/{self.pid}").exists()


def this_process() -> dict[str, Any]:
    """Return the fields that name this process as an owner."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


class AttemptRecord(OwnerRecord):
    """The start of an attempt at a night, which is a lease."""

    lease_hours: float
    spec: str
    """Hash of the spec."""
    backfilled: bool = False
    confirms: str | None = None
    """Attempt that this one repeats."""


class FailedRecord(HistoryRecord):
    """The end of an attempt without a night."""

    reason: str
    failed_at: str


class SeriesValue(HistoryRecord):
    """A metric of a night."""

    value: float
    low: float | None
    high: float | None
    n: int
    direction: Direction
    unit: str
    margin: float
    set_hash: Sha256
    protocol_hash: Sha256


class MeasuredSubject(HistoryRecord):
    """What a subject came to."""

    kind: Literal["recipe", "folder", "canary"]
    place: str | None
    digest: Sha256
    """Hash of the model's files."""
    evaluation: str
    """Fingerprint of the evaluation."""
    folder: RelativeName
    """Folder of the evaluation, below the history's."""
    scores: Sha256
    """Hash of all score tables and values."""
    values: dict[str, SeriesValue]
    """Metrics by series, `<set>/<protocol>/<metric>`."""
    protocols: dict[str, dict[str, Any]]
    """Protocols by name."""
    environment: Environment
    notes: tuple[str, ...]
    measured_at: str


class NightRecord(HistoryRecord):
    """A night that was measured."""

    night: SingleName
    attempt: SingleName
    spec: str
    """Hash of the spec."""
    subjects: dict[SingleName, MeasuredSubject]
    missing: tuple[str, ...]
    """What the spec names and no subject has: sets, protocols, primary series."""
    finished_at: str
    backfilled: bool = False


class SeriesVerdict(HistoryRecord):
    """What the chart says of a series."""

    state: SeriesState
    reason: str
    chart: dict[str, Any]
    """All that the chart gave."""


class Confirmation(HistoryRecord):
    """The second measurement of a night that looked bad."""

    attempt: SingleName
    differing: tuple[str, ...]
    """Subjects whose two measurements are not equal bit by bit."""


class VerdictRecord(HistoryRecord):
    """What a night comes to, by one ruleset."""

    night: SingleName
    ruleset: str
    state: VerdictState
    reason: str
    series: dict[str, SeriesVerdict]
    """By `<subject>/<set>/<protocol>/<metric>`."""
    reference: str | None
    """Night that this one was compared with."""
    baseline: int | None
    """Number of the baseline in force."""
    changes: tuple[str, ...]
    """What differs between the environments of the reference and of this night."""
    confirmation: Confirmation | None
    judged_at: str


class SeriesDifference(HistoryRecord):
    """A series of a checkpoint less that of the one before, over the same samples."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where there is no score of each sample."""
    high: float | None
    p: float | None
    """Adjusted: by Holm over the primary series, by Benjamini-Hochberg over the others."""
    margin: float
    verdict: Verdict


class CheckpointDifferences(HistoryRecord):
    """What a recipe's checkpoint is against the one before it."""

    before: SingleName
    """Newest night on which the one before was measured."""
    digest: Sha256
    """Hash of that checkpoint's files."""
    series: dict[str, SeriesDifference]
    """By `<set>/<protocol>/<metric>`."""


class Movement(HistoryRecord):
    """How unlike its earlier nights a series is that may not alarm."""

    residual: float
    """Deviation as a standard normal deviate, negative if worse."""
    p: float
    """Two-sided, adjusted by Benjamini-Hochberg over all such series of the night."""


class DetailsRecord(HistoryRecord):
    """What is told of a night beside its verdict, by one ruleset; nothing in it alarms."""

    night: SingleName
    ruleset: str
    differences: dict[SingleName, CheckpointDifferences]
    """By subject: those with another checkpoint than on the night before."""
    movements: dict[str, Movement]
    """By `<subject>/<set>/<protocol>/<metric>`: the series that are not primary, with nights enough."""


class SendingRecord(OwnerRecord):
    """An alert that is about to be sent."""


class SentRecord(HistoryRecord):
    """An alert that was sent, with what it said."""

    sent_at: str
    event: dict[str, Any]


class UnsentRecord(HistoryRecord):
    """An alert that could not be sent; another command tries again."""

    reason: str
    failed_at: str


class ProposalRecord(HistoryRecord):
    """Rules that `calibrate` proposes."""

    rules: dict[str, Any]
    proposed_at: str
    num_nights: int
