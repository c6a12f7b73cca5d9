"""Train: the dual tokenizer, data-parallel, from image shards, decisions and targets.

The loop is the same in this process and under Ray Train; only what it calls to meet the other workers, and
to hand over a checkpoint, differs.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.hub.saved_model import FILES
from dualtoken.model.precision import tower_precision
from dualtoken.model.teacher.teacher import TeacherTargets, load_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.model.vision.augment import random_crop
from dualtoken.model.vision.towers import checkpoint_gradients
from dualtoken.model.vision.transform import normalize, to_tensor
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.errors import UserError, user_error_on_divergence
from dualtoken.pipelines.inference.networks import set_num_threads, stage_device
from dualtoken.pipelines.training.dataset import TrainingSet, ahead, batch_numbers
from dualtoken.pipelines.training.metrics_log import MetricsLog
from dualtoken.pipelines.training.perceptual import open_perceptual
from dualtoken.pipelines.training.worker_run import OwnRun, TrainingRun, WorkerRank

STATE_FILE = "state.pt"


class _Batch(NamedTuple):
    images: Tensor
    pooled: Tensor | None
    dense: Tensor | None


def train_loop(settings: dict[str, Any], run: TrainingRun) -> None:
    """Train to the last step, from the last checkpoint if there is one; `settings` holds the job."""
    job: StageJob = settings["job"]
    train = job.recipe.train
    logging.getLogger().setLevel(logging.WARNING)  # open_clip tells each of its steps to the root logger
    if run.device.type == "cpu":
        set_num_threads(train.cpus_per_worker)
    with scratch_folder() as name, ExitStack() as records:
        scratch = Path(name)
        batches = Batches(job, run, scratch)
        state = _start(job, run, scratch)
        log = (
            records.enter_context(MetricsLog(job.store(), scratch, job.label, train.steps, state.step))
            if run.rank == 0
            else None
        )
        started, first = time.monotonic(), state.step
        for step, batch in ahead(batches.make, range(state.step, train.steps)):
            with user_error_on_divergence():
                levels = batch.images.to(run.device)
                metrics = train_step(state, normalize(levels), batches.targets(batch, levels)).present()
            last = step == train.steps - 1
            if log and (step % train.log_every == 0 or last):
                speed = (step + 1 - first) * train.batch_size / (time.monotonic() - started)
                log.write(step, {**metrics, "images_per_second": round(speed, 1)})
            if last or (step + 1) % train.checkpoint_every == 0:
                _report(run, state, step, metrics, log)


class Batches:
    """Makes this rank's share of each step's batch."""

    def __init__(self, job: StageJob, run: WorkerRank, scratch: Path) -> None:
        self._job, self._run = job, run
        self._samples = TrainingSet(job, scratch / "samples")
        if not len(self._samples):
            raise UserError("training has no samples: the filter kept none; loosen filter.rules")
        # Without stored targets the teacher runs beside the training.
        stored = job.recipe.targets.dense
        self._teacher = (
            None
            if stored
            else load_teacher(job.input("teacher").local_folder(scratch / "teacher"), run.device)
        )

    def make(self, step: int) -> _Batch:
        """Read and decode; runs in a thread ahead of the training."""
        recipe, run = self._job.recipe, self._run
        numbers = batch_numbers(len(self._samples), recipe.train.batch_size, recipe.train.seed, step)[
            run.rank :: run.world_size
        ]
        pictures = [self._samples.image(number) for number in numbers]
        if recipe.train.random_crop:
            pictures = [
                self.crop(picture, step, place * run.world_size + run.rank)
                for place, picture in enumerate(pictures)
            ]
        images = to_tensor(pictures, recipe.tokenizer.image_size)
        if self._teacher:
            return _Batch(images, None, None)
        said = self._samples.targets(numbers)
        assert said.dense is not None, "the targets stage stored dense targets"
        dense = torch.from_numpy(said.dense).unflatten(1, (-1, recipe.tokenizer.tower.width))
        return _Batch(images, torch.from_numpy(said.pooled), dense)

    def crop(self, picture: Image.Image, step: int, place: int) -> Image.Image:
        """Crop by the place in the whole batch, so that a resumed run, or one of more workers, draws the same."""
        recipe = self._job.recipe
        assert recipe.train.random_crop
        generator = np.random.default_rng([recipe.train.seed, step, place])
        return random_crop(picture, recipe.tokenizer.image_size, recipe.train.random_crop, generator)

    def targets(self, batch: _Batch, levels: Tensor) -> TeacherTargets:
        """Return the teacher's word on a batch, stored or asked now: then of `levels`, its images on the device, in the run's precision."""
        device, recipe = self._run.device, self._job.recipe
        if self._teacher:
            with tower_precision(device, recipe.train.precision):
                return self._teacher.targets(levels, recipe.tokenizer.semantic_block)
        assert batch.pooled is not None
        assert batch.dense is not None
        return TeacherTargets(batch.pooled.to(device), batch.dense.to(device))


def _start(job: StageJob, run: TrainingRun, scratch: Path) -> TrainState:
    """Build the model that training begins with, and go on from the last checkpoint if there is one."""
    train = job.recipe.train
    torch.manual_seed(train.seed)
    model = _first_model(job, scratch)
    apply_memory_layout(model, train)
    model.to(run.device)
    perceptual = open_perceptual(train.perceptual, scratch)
    state = TrainState(model, train, perceptual and perceptual.to(run.device), wrap=run.wrap)
    with run.latest_checkpoint() as folder:
        if folder is not None:
            state.load_state_dict(torch.load(folder / STATE_FILE, map_location=run.device, weights_only=True))
    return state


def apply_memory_layout(model: DualTokenizer, train: TrainConfig) -> None:
    """Hold weights and activations in memory as the recipe says."""
    if train.memory_format == "channels_last":
        for part in (model.post_quant, model.decoder):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (its stub lacks it)
    if train.checkpoint_tower:
        checkpoint_gradients(model.tower)


def _first_model(job: StageJob, scratch: Path) -> DualTokenizer:
    """Return fresh parts beside the teacher's tower, or the tokenizer that the recipe names."""
    recipe = job.recipe
    if (folder := recipe.train.start_from) is None:
        model = DualTokenizer(recipe.tokenizer)
        model.init_tower(load_teacher(job.input("teacher").local_folder(scratch / "teacher")).trunk)
        return model
    model = DualTokenizer.from_pretrained(Store(folder).local_folder(scratch / "start"))
    if model.config != recipe.tokenizer:
        raise UserError(
            f"train.start_from={folder!r} holds another tokenizer than the recipe's: copy its config into tokenizer"
        )
    return model


def _report(
    run: TrainingRun, state: TrainState, step: int, metrics: Mapping[str, float], log: MetricsLog | None
) -> None:
    if log is None:
        run.report(step, metrics)
        return
    with scratch_folder() as name:
        folder = Path(name)
        state.result.save_pretrained(folder)
        torch.save(state.state_dict(), folder / STATE_FILE)
        log.save()
        run.report(step, metrics, folder)


def collect(checkpoint: Store, scratch: Path) -> UnitOutput:
    """Take the model out of a run's last checkpoint."""
    for name in FILES:
        shutil.copyfile(checkpoint.local_copy(name, scratch / "checkpoint"), scratch / name)
    return UnitOutput(FILES, None)


class Worker:
    """Trains in this process, without checkpoints that outlive it; Ray Train runs `loop` in a group of processes."""

    loop = staticmethod(train_loop)
    output = staticmethod(collect)

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the model's folder."""
        assert unit.rows == 0
        if (workers := self._job.recipe.train.num_workers) > 1:
            raise UserError(f"train.num_workers={workers} in one process: run on Ray, or set it to 1")
        run = OwnRun(scratch / "latest", stage_device(self._job))
        train_loop({"job": self._job}, run)
        return collect(Store(str(run.folder)), scratch)
