"""Runs units on a Ray cluster: Ray Data maps them over a pool of actors, with retries and autoscaling.

A unit travels as two integers; an actor opens a job's worker when the job's first unit arrives. Training
runs under Ray Train. Nothing here decides what is done: receipts do.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from dualtoken.infra.log_levels import at_least
from dualtoken.infra.native_stderr import without_lines
from dualtoken.infra.ray_errors import first_line, is_death
from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.infra.ray_session import LOCAL, ray_session
from dualtoken.infra.ray_train import fit
from dualtoken.infra.ray_validation import Validation
from dualtoken.infra.stop_request import stop_request
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.core.receipts import CHECKPOINT_RECEIPT, CHECKPOINTS, done_units
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import (
    AnyJob,
    StageJob,
    TrainingWorker,
    Unit,
    UnitOutcome,
    UnitOutput,
    Work,
)
from dualtoken.pipelines.errors import ExitCode, Preempted, UserError, exit_code
from dualtoken.pipelines.runtime.executor import GIVE_UP_AFTER, WorkerSlot, run_attempt, worker_class_of

_log = logging.getLogger(__name__)

TASK_RETRIES = 3
"""Retries of a unit whose process died. Processes themselves restart without limit: a cluster of spot
machines loses many."""
_ABOUT_RESTARTS = re.compile(rb"\[[^]]*\] core_worker\.cc:\d+: Actor with class name: .* max_restarts > 0")
"""Ray's warning, logged as an error, of how Ray Data starts its actors. It keeps their arguments itself."""
MAX_BLOCKS = 4096
"""Ray Data keeps a record per block; more units than this share blocks, whose outcomes come when all of
them are done."""


class RayExecutor:
    """An executor on one cluster; it joins, or starts, the cluster when the first unit is to run."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._session = ExitStack()
        self._connected = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.__exit__(*error)  # type: ignore[arg-type]

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield an outcome per unit as they end, in any order."""
        if not self._connected:
            self._connect()
        job = work[0].job
        self._check_room(job)
        if job.engine == "ray_train":
            yield from self._train(work)
        else:
            yield from self._map(work)

    def _connect(self) -> None:
        cluster = self._cluster
        address = cluster.address
        if address == LOCAL:
            # Inside a Ray job, the cluster is the one that the job runs on.
            address = current_job_address() or LOCAL
        session = ray_session(address, num_cpus=cluster.num_cpus, object_store_mb=cluster.object_store_mb)
        try:
            self._session.enter_context(session)
        except ValueError as error:
            raise UserError(f"cluster.{error}") from None
        self._connected = True
        # Errors of Ray Data are raised, or come out as units without an outcome.
        self._session.enter_context(at_least(logging.CRITICAL, "ray.data"))

    def _check_room(self, job: AnyJob) -> None:
        """Raise `UserError` for what our own cluster can never run; warn of it on another, which may grow."""
        room = ray.cluster_resources()
        for demand in job.asks.demands:
            available = room.get(demand.kind, 0)
            if demand.amount <= available:
                continue
            wants = f"{job.stage}: {demand.keys} wants {demand.amount:g} {demand.kind}s"
            if self._cluster.address == LOCAL and not current_job_address():
                raise UserError(
                    f"{wants}, this machine's cluster has {available:g}: "
                    f"{demand.fix}, or run on another cluster"
                )
            _log.warning(
                "%s, the cluster has %g: waiting for it to grow; where it cannot, stop and %s",
                wants,
                available,
                demand.fix,
            )

    def _train(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        for job_units in work:
            open_worker = partial(_RayTrainWorker, job_units.job)
            for unit in job_units.units:
                yield run_attempt(job_units.job, open_worker, unit)

    def _map(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        places: list[dict[str, int]] = []
        for job_number, job_units in enumerate(work):
            for unit_number in range(len(job_units.units)):
                places.append({"job": job_number, "unit": unit_number})
        ended: set[tuple[str, str]] = set()
        reason = f"its process died {TASK_RETRIES + 1} times, as of too little memory, a lost GPU or a crash"
        try:
            for row in self._outcome_rows(work, places):
                fields = json.loads(row["outcome"])
                yield UnitOutcome(**fields | {"code": ExitCode(fields["code"])})
                ended.add((fields["label"], fields["unit"]))
        except ray.exceptions.RayError as error:
            if not is_death(error):
                raise
            reason = f"processes died too often, as of too little memory or a crash: {first_line(error)}"
        yield from _without_outcome(work, ended, reason)

    def _outcome_rows(self, work: Sequence[Work], places: list[dict[str, int]]) -> Iterator[dict[str, Any]]:
        """Map the pool of actors over units, and yield rows of one JSON outcome each."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty()
        context.max_errored_blocks = GIVE_UP_AFTER  # the others are done beside a unit that kills its process
        largest = min(self._cluster.max_workers, len(places))
        pool = ray.data.ActorPoolStrategy(
            min_size=min(self._cluster.min_workers, largest),
            max_size=largest,
            initial_size=largest,
            max_tasks_in_flight_per_actor=1,  # a unit that waits in a process that dies would lose a try too
        )
        resources = work[0].job.asks
        units = ray.data.from_items(places, override_num_blocks=min(len(places), MAX_BLOCKS))
        with warnings.catch_warnings():
            # For the two last options, which have no named parameter yet in this Ray.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            outcomes = units.map_batches(
                _UnitActor,
                fn_constructor_args=(tuple(work),),
                batch_size=1,
                compute=pool,
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=-1,
                max_task_retries=TASK_RETRIES,
            )
        rows = iter(outcomes.iter_rows())
        with without_lines(_ABOUT_RESTARTS, first_byte=b"["):  # before it has a row, it starts its actors
            first = next(rows, None)
        if first is not None:
            yield first
        yield from rows


def _without_outcome(
    work: Sequence[Work], ended: AbstractSet[tuple[str, str]], reason: str
) -> Iterator[UnitOutcome]:
    """Yield a temporary failure for each unit that neither came back nor left a receipt."""
    for job_units in work:
        job = job_units.job
        missing = [unit for unit in job_units.units if (job.label, unit.id) not in ended]
        if not missing:
            continue
        done = done_units(job.store())
        for unit in missing:
            if unit.id not in done:
                yield UnitOutcome(job.label, unit.id, {}, 0.0, reason, ExitCode.TEMPORARY)


class _UnitActor:
    """One process of the pool."""

    def __init__(self, work: tuple[Work, ...]) -> None:
        self._work = work
        self._slot = WorkerSlot()

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        outcomes: list[str] = []
        for job_number, unit_number in zip(batch["job"], batch["unit"], strict=True):
            outcome = self._attempt(int(job_number), int(unit_number))
            outcomes.append(json.dumps(asdict(outcome)))
        return {"outcome": outcomes}

    def _attempt(self, job_number: int, unit_number: int) -> UnitOutcome:
        job, units = self._work[job_number].job, self._work[job_number].units
        outcome = run_attempt(job, partial(self._slot.open, job), units[unit_number])
        if outcome.needs_new_process:
            _end_process(outcome)
        return outcome


def _end_process(outcome: UnitOutcome) -> NoReturn:
    """End this process at once, so that Ray does the unit again in a new one.

    It would fail each unit that it is given, in milliseconds, and so draw all that are left.
    """
    reason = outcome.error.rstrip().splitlines()[-1]
    print(
        f"{outcome.label} {outcome.unit}: {reason}: its process lost the device and ends: a new one follows",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # without handlers of the device's libraries, which may hang


class _RayTrainWorker:
    """Runs a training loop in a group of Ray Train; a run that was cut goes on from its last checkpoint."""

    def __init__(self, job: AnyJob) -> None:
        # Only recipes train.
        self._job = cast("StageJob", job)
        self._worker = cast("type[TrainingWorker]", worker_class_of(job))

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Train, then take the model out of the last checkpoint."""
        assert unit.rows == 0
        resources = self._job.asks
        config = self._job.training
        with sole_run(self._job.store()), stop_request.deferred(config.stop_grace_seconds):
            fit(
                self._worker.loop,
                {"job": self._job},
                name=CHECKPOINTS,
                storage_path=self._job.folder,
                is_final=is_final,
                group_sizes=resources.group_sizes,
                cpus_per_worker=int(resources.cpus),
                use_gpu=bool(resources.gpus),
                max_failures=resources.max_failures,
                progress=partial(newest_checkpoint, self._job),
                collective_timeout_seconds=config.collective_timeout_seconds,
                validation=self._validation(),
            )
            if stop_request.is_set():
                raise Preempted
            return self._worker.output(self._job, scratch)

    def _validation(self) -> Validation | None:
        """Return how tasks measure checkpoints; None where the recipe leaves that to the workers."""
        config = self._job.training
        measure = self._worker.validate
        give_up = self._worker.give_up_validation
        if not config.validate_every or config.validate_in == "worker" or measure is None or give_up is None:
            return None
        return Validation(measure, give_up, config.hang_timeout_seconds)


def newest_checkpoint(job: AnyJob) -> int | None:
    """Return the step of a training's newest checkpoint; None where there is none."""
    store = job.store()
    for name in reversed(store.folders(CHECKPOINTS)):
        if store.exists(f"{name}/{CHECKPOINT_RECEIPT}"):
            return int(name.rpartition("-")[2])
    return None


def is_final(error: BaseException) -> bool:
    """Tell whether a training would only fail in the same way again: of a user's mistake, or a bug.

    RuntimeError is what PyTorch raises where another worker of the group is gone.
    """
    code = exit_code(error)
    return code == ExitCode.CONFIGURATION or (code == ExitCode.BUG and not isinstance(error, RuntimeError))
