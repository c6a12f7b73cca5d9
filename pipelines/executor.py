"""What every executor does alike: opens workers, turns a unit's failure into an outcome, and sums outcomes up."""

import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from infra.scratch import remove_abandoned
from pipelines.commit import run_unit
from pipelines.errors import ExitCode, UnitsFailed, exit_code
from pipelines.stage import StageJob, Unit, Worker

Say = Callable[[str], None]
"""Prints one line for the user."""
GIVE_UP_AFTER = 8
"""Units that fail one after the other for what may pass: what they need is gone, and the others would fail as slowly."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job and those of its units that have no receipt."""

    job: StageJob
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one unit ended on a worker; the receipt is what counts, this is for the log."""

    label: str
    unit: str
    counts: Mapping[str, int]
    seconds: float
    error: str = ""
    """What went wrong, with the traceback of a bug; empty where the unit is done."""
    code: ExitCode = ExitCode.DONE
    audit: Mapping[str, Any] = field(default_factory=dict)
    """What a token shard's receipt says of its codes; of other units nothing."""


class Executor(Protocol):
    """Runs units, in this process or on a cluster."""

    def run(self, work: Sequence[Work]) -> Iterable[Outcome]:
        """Yield an outcome per unit as they end, in any order."""
        ...


class WorkerSlot:
    """Keeps the worker of one job open: units of a job come together, and models are loaded once."""

    def __init__(self) -> None:
        self._job: StageJob | None = None
        self._worker: Worker | None = None

    def open(self, job: StageJob) -> Worker:
        """Return the job's worker, opened on first use."""
        if self._worker is None or self._job is not job:
            remove_abandoned()  # of processes that were killed, as where machines are taken away: they would fill the disk
            self._worker = None  # frees the last job's models before the next ones are loaded
            stage = importlib.import_module(f"pipelines.stages.{job.stage}")
            self._worker, self._job = cast("Worker", stage.Worker(job)), job
        return self._worker


def attempt(job: StageJob, worker: Callable[[], Worker], unit: Unit) -> Outcome:
    """Run a unit on the worker that `worker` opens or has open, and never raise: one bad unit must not stop the others."""
    try:
        receipt = run_unit(job, worker(), unit)
    except Exception as error:  # noqa: BLE001  (sorted by exit_code, reported by collect)
        code = exit_code(error)
        said = traceback.format_exc() if code == ExitCode.BUG else str(error) or type(error).__name__
        return Outcome(job.label, unit.id, {}, 0.0, said, code)
    return Outcome(job.label, unit.id, receipt.counts, receipt.seconds, audit=receipt.facts.get("audit", {}))


def collect(outcomes: Iterable[Outcome], work: Sequence[Work], say: Say) -> None:
    """Say what each unit gave; raise `UnitsFailed` when any failed, after all have run, or `GIVE_UP_AFTER` of them in a row."""
    total = sum(len(one.units) for one in work)
    failed: list[Outcome] = []
    in_a_row = done = 0
    for done, outcome in enumerate(outcomes, start=1):
        in_a_row = in_a_row + 1 if outcome.code == ExitCode.TEMPORARY else 0
        if outcome.error:
            failed.append(outcome)
            say(f"{outcome.label} {outcome.unit} failed ({done}/{total}): {outcome.error.rstrip()}")
        else:
            counts = ", ".join(f"{count} {status}" for status, count in outcome.counts.items())
            say(f"{outcome.label} {outcome.unit} done ({done}/{total}){': ' if counts else ''}{counts}, {outcome.seconds:.1f} s")
        if in_a_row == GIVE_UP_AFTER:
            break
    if failed:
        worst = min((outcome.code for outcome in failed), key=lambda code: code.value)
        failures = {f"{outcome.label} {outcome.unit}": outcome.error.rstrip().splitlines()[-1] for outcome in failed}
        raise UnitsFailed(failures, total, worst, total - done)
