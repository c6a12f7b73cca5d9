"""Train stage: the dual tokenizer, data-parallel, from image shards, decisions and targets.

The loop is the same in this process and under Ray Train, and so are its checkpoints: either goes on where the
other was stopped. Only the context differs, which is how it meets the other workers.
"""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.hub.saved_model import FILES
from dualtoken.model.teacher.teacher import load_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.model.vision.towers import checkpoint_gradients
from dualtoken.model.vision.transform import normalize
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError, user_error_on_divergence
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.checkpoints import Checkpoints
from dualtoken.pipelines.training.metrics_log import MetricsLog
from dualtoken.pipelines.training.perceptual import open_perceptual
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.train_batches import TrainDataLoader
from dualtoken.pipelines.training.train_context import SingleProcessContext, TrainContext

STATE_FILE = "state.pt"
PREFETCHED_BATCHES = 2


def train_loop(settings: dict[str, Any], context: TrainContext) -> None:
    """Train to the last step, from the last checkpoint if there is one; `settings` holds the job."""
    job: StageJob = settings["job"]
    train = job.recipe.train
    num_threads = train.cpus_per_worker if context.device.type == "cpu" else None
    with scratch_folder() as name, process_settings(num_threads), ExitStack() as stack:
        scratch = Path(name)
        data_loader = stack.enter_context(TrainDataLoader(job, context, scratch))
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
                images = batch.images.to(context.device, non_blocking=True)
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
    try:
        model = DualTokenizer.from_pretrained(Store(folder).local_folder(scratch / "start"))
    except ValueError as error:
        raise UserError(f"train.start_from={folder!r}: {' '.join(str(error).split())}") from error
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
