"""Runs units on a Ray cluster: Ray Data maps them over a pool of actors; retries, autoscaling and progress are Ray's.

A unit travels as two integers; an actor opens a job's worker when the job's first unit arrives. Training
runs under Ray Train. Nothing here decides what is done: receipts do.
"""

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from dualtoken.infra.ray_errors import first_line, is_death
from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.infra.ray_session import LOCAL, ray_session
from dualtoken.infra.ray_train import fit
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.config.resources import demands, per_worker
from dualtoken.pipelines.core.receipts import done_units
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutcome, UnitOutput, Work
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.runtime.executor import GIVE_UP_AFTER, WorkerSlot, run_attempt

_log = logging.getLogger(__name__)

TASK_RETRIES = 3
"""Of a unit whose process died. The processes themselves are started anew without end: a cluster of spot machines loses many."""
MAX_BLOCKS = 4096
"""Ray Data keeps a record per block; more units than this share blocks, whose outcomes come when all of them are done."""


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
        if work[0].job.stage == "train":
            self._check_room(work[0].job)
            yield from (
                run_attempt(one.job, partial(_TrainOnRay, one.job), unit)
                for one in work
                for unit in one.units
            )
        else:
            yield from self._map(work)

    def _connect(self) -> None:
        cluster = self._cluster
        # Inside a Ray job, the cluster is the one that the job runs on.
        address = (current_job_address() or LOCAL) if cluster.address == LOCAL else cluster.address
        try:
            self._session.enter_context(
                ray_session(address, num_cpus=cluster.num_cpus, object_store_mb=cluster.object_store_mb)
            )
        except ValueError as error:
            raise UserError(f"cluster.{error}") from None
        self._connected = True
        logging.getLogger("ray.data").setLevel(
            logging.CRITICAL
        )  # its errors are raised, or come out as units without an outcome

    def _check_room(self, job: StageJob) -> None:
        """Raise `UserError` for what a cluster of our own can never run; another one may grow, so there it is said."""
        room = ray.cluster_resources()
        for demand in demands(job.recipe, job.stage):
            if demand.amount <= (there := room.get(demand.kind, 0)):
                continue
            wants = f"{job.stage}: {demand.keys} wants {demand.amount:g} {demand.kind}s"
            if self._cluster.address == LOCAL and not current_job_address():
                raise UserError(
                    f"{wants}, this machine's cluster has {there:g}: {demand.fix}, or run on another cluster"
                )
            _log.warning(
                "%s, the cluster has %g: waiting for it to grow; where it cannot, stop and %s",
                wants,
                there,
                demand.fix,
            )

    def _map(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty()
        context.max_errored_blocks = GIVE_UP_AFTER  # the others are done beside a unit that kills its process
        places = [
            {"job": job, "unit": unit} for job, one in enumerate(work) for unit in range(len(one.units))
        ]
        self._check_room(work[0].job)
        cpus, gpus = per_worker(work[0].job.recipe, work[0].job.stage)
        largest = min(self._cluster.max_workers, len(places))
        pool = ray.data.ActorPoolStrategy(
            min_size=min(self._cluster.min_workers, largest),
            max_size=largest,
            initial_size=largest,
            max_tasks_in_flight_per_actor=1,  # a unit that waits in a process that dies would lose a try too
        )
        with warnings.catch_warnings():
            # Of the two last options, which have no named parameter yet in this Ray.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            outcomes = ray.data.from_items(
                places, override_num_blocks=min(len(places), MAX_BLOCKS)
            ).map_batches(
                _UnitActor,
                fn_constructor_args=(tuple(work),),
                batch_size=1,
                compute=pool,
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=TASK_RETRIES,
            )
        came: set[tuple[str, str]] = set()
        said = f"its process died {TASK_RETRIES + 1} times, as of too little memory or a crash"
        try:
            for row in outcomes.iter_rows():
                fields = json.loads(row["outcome"])
                yield UnitOutcome(**fields | {"code": ExitCode(fields["code"])})
                came.add((fields["label"], fields["unit"]))
        except ray.exceptions.RayError as error:
            if not is_death(error):
                raise
            said = f"processes died too often, as of too little memory or a crash: {first_line(error)}"
        yield from _without_outcome(work, came, said)


def _without_outcome(
    work: Sequence[Work], came: AbstractSet[tuple[str, str]], said: str
) -> Iterator[UnitOutcome]:
    """Yield a failure that may pass for each unit that neither came back nor left a receipt."""
    for one in work:
        if missing := [unit for unit in one.units if (one.job.label, unit.id) not in came]:
            done = done_units(one.job.store())
            yield from (
                UnitOutcome(one.job.label, unit.id, {}, 0.0, said, ExitCode.TEMPORARY)
                for unit in missing
                if unit.id not in done
            )


class _UnitActor:
    """One process of the pool."""

    def __init__(self, work: tuple[Work, ...]) -> None:
        self._work = work
        self._slot = WorkerSlot()

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        outcomes = [
            self._attempt(int(job), int(unit)) for job, unit in zip(batch["job"], batch["unit"], strict=True)
        ]
        return {"outcome": [json.dumps(asdict(outcome)) for outcome in outcomes]}

    def _attempt(self, number: int, unit: int) -> UnitOutcome:
        one = self._work[number]
        return run_attempt(one.job, partial(self._slot.open, one.job), one.units[unit])


class _TrainOnRay:
    """The train stage's worker, its loop run by Ray Train; a run that was cut goes on from its last checkpoint."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._stage = importlib.import_module(
            "dualtoken.pipelines.training.train"
        )  # brings torch, which a run with nothing to do spares

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Train, then take the model out of the last checkpoint."""
        assert unit.rows == 0
        train = self._job.recipe.train
        checkpoint = fit(
            self._stage.train_loop,
            {"job": self._job},
            name="checkpoints",
            storage_path=self._job.folder,
            num_workers=train.num_workers,
            cpus_per_worker=train.cpus_per_worker,
            use_gpu=train.use_gpu,
            max_failures=train.max_failures,
        )
        return self._stage.copy_model_from_checkpoint(Store(str(checkpoint)), scratch)
