"""What every executor does alike: opens workers, turns a unit's failure into an outcome, and sums outcomes up."""

import importlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

from dualtoken.infra.scratch import remove_abandoned
from dualtoken.pipelines.core.commit import run_unit
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutcome, Work, Worker
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, exit_code

WORKERS = {
    "scenes": "dualtoken.pipelines.images.scenes",
    "download": "dualtoken.pipelines.images.download",
    "teacher": "dualtoken.pipelines.training.teacher",
    "score": "dualtoken.pipelines.curation.score",
    "filter": "dualtoken.pipelines.curation.filter",
    "targets": "dualtoken.pipelines.training.targets",
    "train": "dualtoken.pipelines.training.train",
    "pretokenize": "dualtoken.pipelines.tokens.pretokenize",
    "report": "dualtoken.pipelines.evaluation.report",
}
"""The module of each stage's `Worker`, imported in the process that runs it."""
GIVE_UP_AFTER = 8
"""Units that fail one after the other for what may pass: what they need is gone, and the others would fail as slowly."""


class Executor(Protocol):
    """Runs units, in this process or on a cluster."""

    def run(self, work: Sequence[Work]) -> Iterable[UnitOutcome]:
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
            stage = importlib.import_module(WORKERS[job.stage])
            self._worker, self._job = cast("Worker", stage.Worker(job)), job
        return self._worker


def run_attempt(job: StageJob, worker: Callable[[], Worker], unit: Unit) -> UnitOutcome:
    """Run a unit on the worker that `worker` opens or has open, and never raise: one bad unit must not stop the others."""
    try:
        receipt = run_unit(job, worker(), unit)
    except Exception as error:  # noqa: BLE001  (sorted by exit_code, reported by collect)
        code = exit_code(error)
        said = traceback.format_exc() if code == ExitCode.BUG else str(error) or type(error).__name__
        return UnitOutcome(job.label, unit.id, {}, 0.0, said, code)
    return UnitOutcome(
        job.label, unit.id, receipt.counts, receipt.seconds, audit=receipt.facts.get("audit", {})
    )


def report_outcomes(outcomes: Iterable[UnitOutcome], work: Sequence[Work], print_line: PrintLine) -> None:
    """Say what each unit gave; raise `UnitsFailed` when any failed, after all have run, or `GIVE_UP_AFTER` of them in a row."""
    total = sum(len(one.units) for one in work)
    failed: list[UnitOutcome] = []
    in_a_row = done = 0
    for done, outcome in enumerate(outcomes, start=1):
        in_a_row = in_a_row + 1 if outcome.code == ExitCode.TEMPORARY else 0
        if outcome.error:
            failed.append(outcome)
            print_line(f"{outcome.label} {outcome.unit} failed ({done}/{total}): {outcome.error.rstrip()}")
        else:
            counts = ", ".join(f"{count} {status}" for status, count in outcome.counts.items())
            print_line(
                f"{outcome.label} {outcome.unit} done ({done}/{total}){': ' if counts else ''}{counts}, {outcome.seconds:.1f} s"
            )
        if in_a_row == GIVE_UP_AFTER:
            break
    if failed:
        worst = min((outcome.code for outcome in failed), key=lambda code: code.value)
        failures = {
            f"{outcome.label} {outcome.unit}": outcome.error.rstrip().splitlines()[-1] for outcome in failed
        }
        raise UnitsFailed(failures, total, worst, total - done)


class LocalExecutor:
    """An executor without a cluster."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield an outcome per unit, in order."""
        slot = WorkerSlot()
        for one in work:
            for unit in one.units:
                yield run_attempt(one.job, partial(slot.open, one.job), unit)
