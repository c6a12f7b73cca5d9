"""Runs units on a Ray cluster: Ray Data maps them over a pool of actors; retries, autoscaling and progress are Ray's.

A unit travels as two integers; an actor opens a job's worker when the job's first unit arrives. Training
runs under Ray Train. Nothing here decides what is done: receipts do.
"""

import importlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import ray.data

from infra.ray_session import LOCAL, current_job_address, ray_session
from infra.ray_train import fit
from infra.storage import Store
from pipelines.config import ClusterConfig
from pipelines.errors import ExitCode, UserError
from pipelines.executor import Outcome, Work, WorkerSlot, attempt
from pipelines.stage import StageJob, Unit, UnitOutput

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

    def run(self, work: Sequence[Work]) -> Iterator[Outcome]:
        """Yield an outcome per unit as they end, in any order."""
        if not self._connected:
            self._connect()
        if work[0].job.stage == "train":
            train = work[0].job.recipe.train
            self._check_room("train", train.num_workers * train.cpus_per_worker, train.num_workers * train.use_gpu)
            yield from (attempt(one.job, partial(_TrainOnRay, one.job), unit) for one in work for unit in one.units)
        else:
            yield from self._map(work)

    def _connect(self) -> None:
        cluster = self._cluster
        # Inside a Ray job, the cluster is the one that the job runs on.
        address = (current_job_address() or LOCAL) if cluster.address == LOCAL else cluster.address
        try:
            self._session.enter_context(ray_session(address, num_cpus=cluster.num_cpus, object_store_mb=cluster.object_store_mb))
        except ValueError as error:
            raise UserError(f"cluster.{error}") from None
        self._connected = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def _check_room(self, stage: str, cpus: float, gpus: float) -> None:
        """Raise `UserError` for what a cluster of our own can never run; another one may grow."""
        if self._cluster.address != LOCAL or current_job_address():
            return
        room = ray.cluster_resources()
        for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > (there := room.get(kind, 0)):
                raise UserError(
                    f"{stage} wants {wanted:g} {kind}s, the local cluster has {there:g}: lower train.cpus_per_worker, or its workers"
                )

    def _map(self, work: Sequence[Work]) -> Iterator[Outcome]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty()
        places = [{"job": job, "unit": unit} for job, one in enumerate(work) for unit in range(len(one.units))]
        cpus, gpus = _resources(work[0].job)
        self._check_room(work[0].job.stage, cpus, gpus)
        largest = min(self._cluster.max_workers, len(places))
        outcomes = ray.data.from_items(places, override_num_blocks=min(len(places), MAX_BLOCKS)).map_batches(
            _UnitActor,
            fn_constructor_args=(tuple(work),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=min(self._cluster.min_workers, largest), max_size=largest, initial_size=largest),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in outcomes.iter_rows():
            fields = json.loads(row["outcome"])
            yield Outcome(**fields | {"code": ExitCode(fields["code"])})


class _UnitActor:
    """One process of the pool."""

    def __init__(self, work: tuple[Work, ...]) -> None:
        self._work = work
        self._slot = WorkerSlot()

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        outcomes = [self._attempt(int(job), int(unit)) for job, unit in zip(batch["job"], batch["unit"], strict=True)]
        return {"outcome": [json.dumps(asdict(outcome)) for outcome in outcomes]}

    def _attempt(self, number: int, unit: int) -> Outcome:
        one = self._work[number]
        return attempt(one.job, partial(self._slot.open, one.job), one.units[unit])


def _resources(job: StageJob) -> tuple[float, float]:
    """Return the CPUs and GPUs that a worker of the stage needs."""
    if job.stage == "teacher":
        return job.recipe.train.cpus_per_worker, float(job.recipe.train.use_gpu)
    if job.stage == "pretokenize":
        return job.recipe.pretokenize.cpus(job.recipe.cluster.gpus_per_worker), job.recipe.cluster.gpus_per_worker
    if job.stage in {"score", "targets", "report"}:
        return 1, job.recipe.cluster.gpus_per_worker
    return 1, 0


class _TrainOnRay:
    """The train stage's worker, its loop run by Ray Train; a run that was cut goes on from its last checkpoint."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._stage = importlib.import_module("pipelines.stages.train")  # brings torch, which a run with nothing to do spares

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
        return self._stage.collect(Store(str(checkpoint)), scratch)
