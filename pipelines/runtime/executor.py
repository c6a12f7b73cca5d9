"""What executors share: opening workers, turning a unit's failure into an outcome, summing outcomes up.

`LocalExecutor` runs units in this process; `ray_executor.py` runs them on a cluster.
"""

import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from dualtoken.infra.device_errors import is_device_lost
from dualtoken.infra.redaction import redacted
from dualtoken.infra.scratch import remove_abandoned
from dualtoken.pipelines.core.commit import run_unit
from dualtoken.pipelines.core.lent_process import lent_process
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.stage import AnyJob, Unit, UnitOutcome, Work, Worker
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, ends_run, exit_code

GIVE_UP_AFTER = 8
"""Units that fail in a row with a temporary error: what they need is gone, and the others would fail as
slowly."""


class Executor(Protocol):
    """Runs units, in this process or on a cluster."""

    def run(self, work: Sequence[Work]) -> Iterable[UnitOutcome]:
        """Yield an outcome per unit as they end, in any order."""
        ...


class LocalExecutor:
    """Runs units one after another in this process, for tests and debugging, and leaves it as it was."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield an outcome per unit, in order."""
        slot = WorkerSlot()
        with lent_process():
            for job_units in work:
                open_worker = partial(slot.open, job_units.job)
                for unit in job_units.units:
                    yield run_attempt(job_units.job, open_worker, unit)


class WorkerSlot:
    """Keeps the worker of one job open: units of a job come together, and models are loaded once."""

    def __init__(self) -> None:
        self._job: AnyJob | None = None
        self._worker: Worker | None = None

    def open(self, job: AnyJob) -> Worker:
        """Return the job's worker, opened on first use."""
        if self._worker is None or self._job is not job:
            # Left by processes that were killed, such as on spot machines: they would fill the disk.
            remove_abandoned()
            self._worker = None  # frees the last job's models before the next ones are loaded
            worker_class = worker_class_of(job)
            self._worker = worker_class(job)
            self._job = job
        return self._worker


def worker_class_of(job: AnyJob) -> Callable[[AnyJob], Worker]:
    """Import a job's worker class: only the process that runs units loads what it brings, such as PyTorch."""
    return pkgutil.resolve_name(job.worker)


def run_attempt(job: AnyJob, open_worker: Callable[[], Worker], unit: Unit) -> UnitOutcome:
    """Run a unit on the worker that `open_worker` returns; never raises, so that others go on."""
    try:
        receipt = run_unit(job, open_worker(), unit)
    except Exception as error:  # noqa: BLE001  (sorted by exit_code, printed by report_outcomes)
        return _failure(job, unit, error)
    return UnitOutcome(
        job.label, unit.id, receipt.counts, receipt.seconds, audit=receipt.facts.get("audit", {})
    )


def _failure(job: AnyJob, unit: Unit, error: Exception) -> UnitOutcome:
    code = exit_code(error)
    message = str(error) or type(error).__name__
    if code == ExitCode.BUG:
        message = "".join(traceback.format_exception(error))
    return UnitOutcome(
        job.label,
        unit.id,
        counts={},
        seconds=0.0,
        error=redacted(message),
        code=code,
        ends_run=ends_run(error),
        needs_new_process=is_device_lost(error),
    )


def report_outcomes(
    outcomes: Iterable[UnitOutcome],
    work: Sequence[Work],
    print_line: PrintLine,
    observe: Callable[[UnitOutcome], None],
) -> None:
    """Print a line for each unit's outcome, and hand it to `observe`, which may end the run by an error.

    Raises `UnitsFailed` when any failed: after all have run, after `GIVE_UP_AFTER` temporary failures in a
    row, or after the first that says that the others would fail alike, be it for want of a new process:
    executors that have further processes do such a unit again in one.
    """
    total = sum(len(job_units.units) for job_units in work)
    failed: list[UnitOutcome] = []
    temporary_in_a_row = 0
    num_ended = 0
    for outcome in outcomes:
        num_ended += 1
        temporary_in_a_row = temporary_in_a_row + 1 if outcome.code == ExitCode.TEMPORARY else 0
        print_line(_outcome_line(outcome, num_ended, total))
        if outcome.error:
            failed.append(outcome)
        if temporary_in_a_row == GIVE_UP_AFTER or outcome.ends_run or outcome.needs_new_process:
            break
        observe(outcome)
    if failed:
        raise _units_failed(failed, total, total - num_ended)


def _outcome_line(outcome: UnitOutcome, num_ended: int, total: int) -> str:
    unit = f"{outcome.label} {outcome.unit}"
    if outcome.error:
        return f"{unit} failed ({num_ended}/{total}): {outcome.error.rstrip()}"
    details = [f"{count} {status}" for status, count in outcome.counts.items()]
    separator = ": " if details else ", "
    details.append(f"{outcome.seconds:.1f} s")
    return f"{unit} done ({num_ended}/{total}){separator}{', '.join(details)}"


def _units_failed(failed: Sequence[UnitOutcome], total: int, num_left: int) -> UnitsFailed:
    """Return the error that names the first failure; its exit code is that of the worst."""
    worst = min((outcome.code for outcome in failed), key=lambda code: code.value)
    reasons: dict[str, str] = {}
    for outcome in failed:
        last_line = outcome.error.rstrip().splitlines()[-1]
        reasons[f"{outcome.label} {outcome.unit}"] = last_line
    return UnitsFailed(reasons, total, worst, num_left)
