"""Train stage: the dual tokenizer, data-parallel, from image shards, decisions and targets.

The loop is the same in this process and under Ray Train, and so are its checkpoints: either goes on where the
other was stopped. Only the context differs, which is how it meets the other workers.
"""

import shutil
import time
from collections.abc import Sequence
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
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError, user_error_on_divergence
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.checkpoints import Checkpoints
from dualtoken.pipelines.training.dataset import TrainingSet, batch_numbers
from dualtoken.pipelines.training.metrics_log import MetricsLog
from dualtoken.pipelines.training.perceptual import open_perceptual
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.train_context import RankContext, SingleProcessContext, TrainContext

STATE_FILE = "state.pt"
PREFETCHED_BATCHES = 2


def train_loop(settings: dict[str, Any], context: TrainContext) -> None:
    """Train to the last step, from the last checkpoint if there is one; `settings` holds the job."""
    job: StageJob = settings["job"]
    train = job.recipe.train
    num_threads = train.cpus_per_worker if context.device.type == "cpu" else None
    with scratch_folder() as name, process_settings(num_threads), ExitStack() as stack:
        scratch = Path(name)
        data_loader = TrainDataLoader(job, context, scratch)
        state = _open_state(job, context, scratch)
        first_step = state.step
        log = None
        if context.rank == 0:
            log = MetricsLog(job.store(), scratch, job.label, train.steps, first_step)
            stack.enter_context(log)

        steps = range(first_step, train.steps)
        batches = map_ahead(data_loader.load, steps, threads=1, ahead=PREFETCHED_BATCHES)
        started = time.monotonic()
        for step, batch in zip(steps, batches, strict=True):
            with user_error_on_divergence():
                images = batch.images.to(context.device)
                targets = data_loader.targets(batch, images)
                metrics = train_step(state, normalize(images), targets).present()

            is_last = step == train.steps - 1
            if log and (is_last or step % train.log_every == 0):
                num_images = (step + 1 - first_step) * train.batch_size
                images_per_second = num_images / (time.monotonic() - started)
                log.write(step, {**metrics, "images_per_second": round(images_per_second, 1)})
            if log and (is_last or (step + 1) % train.checkpoint_every == 0):
                log.save()
                _save_checkpoint(Checkpoints(job.store()), state, step)


class TrainBatch(NamedTuple):
    """A rank's share of a step: B images, N tokens, W channels."""

    images: Tensor
    """(B, 3, S, S), uint8."""
    pooled: Tensor | None
    """(B, W), the teacher's pooled output; None where the teacher runs beside the training."""
    dense: Tensor | None
    """(B, N, W), its tokens; None likewise."""


class TrainDataLoader:
    """Loads one rank's share of each step's batch."""

    def __init__(self, job: StageJob, context: RankContext, scratch: Path) -> None:
        self._job = job
        self._context = context
        self._samples = TrainingSet(job, scratch / "samples")
        if not len(self._samples):
            raise UserError("training has no samples: the filter kept none; loosen filter.rules")
        self._teacher = None
        has_stored_targets = job.recipe.targets.dense
        if not has_stored_targets:
            folder = job.input("teacher").local_folder(scratch / "teacher")
            self._teacher = load_teacher(folder, context.device)

    def load(self, step: int) -> TrainBatch:
        """Read and decode a step's samples; runs in a thread, ahead of the training."""
        recipe = self._job.recipe
        whole_batch = batch_numbers(len(self._samples), recipe.train.batch_size, recipe.train.seed, step)
        share = rank_share(len(whole_batch), self._context)
        numbers = [whole_batch[place] for place in share]

        def view(place: int, picture: Image.Image) -> Tensor:
            if recipe.train.random_crop:
                picture = self.crop(picture, step, share[place])
            return to_tensor([picture], recipe.tokenizer.image_size)

        decoded = self._samples.decode(numbers, view)
        if self._teacher:
            return TrainBatch(decoded.levels, None, None)
        return self._with_stored_targets(decoded.levels, decoded.numbers)

    def _with_stored_targets(self, images: Tensor, numbers: Sequence[int]) -> TrainBatch:
        targets = self._samples.targets(numbers)
        assert targets.dense is not None, "the targets stage stored dense targets"
        width = self._job.recipe.tokenizer.tower.width
        dense = torch.from_numpy(targets.dense).unflatten(1, (-1, width))
        return TrainBatch(images, torch.from_numpy(targets.pooled), dense)

    def crop(self, picture: Image.Image, step: int, place: int) -> Image.Image:
        """Crop at random, by the place in the whole batch: a resumed run, or more workers, draw the same."""
        recipe = self._job.recipe
        assert recipe.train.random_crop
        generator = np.random.default_rng([recipe.train.seed, step, place])
        return random_crop(picture, recipe.tokenizer.image_size, recipe.train.random_crop, generator)

    def targets(self, batch: TrainBatch, images: Tensor) -> TeacherTargets:
        """Return the teacher's targets for a batch: the stored ones, or those that it computes now.

        `images` are the batch's images on the device; the teacher sees them in the run's precision.
        """
        recipe = self._job.recipe
        device = self._context.device
        if self._teacher:
            with tower_precision(device, recipe.train.precision):
                return self._teacher.targets(images, recipe.tokenizer.semantic_block)
        assert batch.pooled is not None
        assert batch.dense is not None
        return TeacherTargets(batch.pooled.to(device), batch.dense.to(device))


def rank_share(batch_size: int, context: RankContext) -> range:
    """Return the places in the whole batch that a rank takes: one after the other, as micro-batches are.

    So the ranks' vectors, one rank after the other, are those of one worker in their order, and a codebook
    restarts at the same ones.
    """
    size, rest = divmod(batch_size, context.world_size)
    assert not rest, "a recipe's batch is a multiple of its workers"
    return range(context.rank * size, (context.rank + 1) * size)


def _open_state(job: StageJob, context: TrainContext, scratch: Path) -> TrainState:
    """Build the model that training begins with, and load the last checkpoint if there is one."""
    train = job.recipe.train
    torch.default_generator.manual_seed(train.seed)  # weights are drawn on the CPU
    model = _initial_model(job, scratch)
    apply_memory_layout(model, train)
    model.to(context.device)
    perceptual = open_perceptual(train.perceptual, scratch)
    if perceptual is not None:
        perceptual = perceptual.to(context.device)
    try:
        state = TrainState(model, train, perceptual, wrap=context.wrap)
    except ValueError as error:
        raise UserError(f"train: {error}") from None
    folder = Checkpoints(job.store()).latest(scratch)
    if folder is not None:
        checkpoint = torch.load(folder / STATE_FILE, map_location=context.device, weights_only=True)
        state.load_state_dict(checkpoint)
    return state


def apply_memory_layout(model: DualTokenizer, train: TrainConfig) -> None:
    """Set the memory layout of weights and activations by the recipe."""
    if train.memory_format == "channels_last":
        for part in (model.post_quant, model.decoder):
            # torch's stub lacks this argument.
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if train.checkpoint_tower:
        checkpoint_gradients(model.tower)


def _initial_model(job: StageJob, scratch: Path) -> DualTokenizer:
    """Return fresh parts beside the teacher's tower, or the tokenizer that the recipe names."""
    recipe = job.recipe
    folder = recipe.train.start_from
    if folder is None:
        model = DualTokenizer(recipe.tokenizer)
        teacher = load_teacher(job.input("teacher").local_folder(scratch / "teacher"))
        model.init_tower(teacher.trunk)
        return model
    model = DualTokenizer.from_pretrained(Store(folder).local_folder(scratch / "start"))
    if model.config != recipe.tokenizer:
        raise UserError(
            f"train.start_from={folder!r} holds another tokenizer than the recipe's: "
            "copy its config into tokenizer"
        )
    return model


def _save_checkpoint(checkpoints: Checkpoints, state: TrainState, step: int) -> None:
    """Write the model so far, and all that the next step needs."""
    with scratch_folder() as name:
        folder = Path(name)
        state.result.save_pretrained(folder)
        torch.save(state.state_dict(), folder / STATE_FILE)
        checkpoints.commit(step, folder)


def copy_model_from_checkpoint(job: StageJob, scratch: Path) -> UnitOutput:
    """Copy the model's files out of a run's last checkpoint, as the output of the stage."""
    checkpoint = Checkpoints(job.store()).latest(scratch / "last")
    assert checkpoint is not None, "a training ends with a checkpoint"
    for name in FILES:
        shutil.copyfile(checkpoint / name, scratch / name)
    return UnitOutput(FILES, None)


class Worker:
    """Trains in this process; Ray Train runs `loop` in a group of processes."""

    loop = staticmethod(train_loop)
    output = staticmethod(copy_model_from_checkpoint)

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the model's folder."""
        assert unit.rows == 0
        num_workers = self._job.recipe.train.num_workers
        if num_workers > 1:
            raise UserError(f"train.num_workers={num_workers} in one process: run on Ray, or set it to 1")
        with sole_run(self._job.store()):
            train_loop({"job": self._job}, SingleProcessContext(stage_device(self._job)))
            return copy_model_from_checkpoint(self._job, scratch)
