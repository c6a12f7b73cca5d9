"""Train stage: the dual tokenizer, data-parallel, from image shards, decisions and targets."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualtoken.infra.storage import Store
from dualtoken.model.hub.saved_model import FILES
from dualtoken.model.metrics.codebook import count_codes
from dualtoken.model.optimizer import StepCheck
from dualtoken.model.teacher.teacher import load_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.tokenizer.resolution import at_resolution
from dualtoken.model.training.inference import inference, measure_heldout
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.model.vision.towers import checkpoint_gradients, tower_blocks
from dualtoken.model.vision.transform import normalize, to_tensor, to_uint8
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.checkpoint_saver import load_module
from dualtoken.pipelines.training.engine import raise_if_stopped, train
from dualtoken.pipelines.training.heldout_images import HeldoutBatch, heldout_batches, summed, sums_of
from dualtoken.pipelines.training.parallel import data_parallel
from dualtoken.pipelines.training.perceptual import open_perceptual
from dualtoken.pipelines.training.resume import add_runs_to_card, job_checkpoints
from dualtoken.pipelines.training.state_tensors import OptimizerOf, TrainedParts
from dualtoken.pipelines.training.step_cost import tokenizer_step_cost
from dualtoken.pipelines.training.task import StepCost, Sum
from dualtoken.pipelines.training.train_batches import TrainBatch, TrainDataLoader
from dualtoken.pipelines.training.train_context import SingleProcessContext, TrainContext
from dualtoken.pipelines.training.validation_tasks import give_up_validation, validate_checkpoint
from dualtoken.pipelines.training.zero_shot import FrozenTeacher

PREFETCHED_BATCHES = 2
NUM_SHOWN = 6
"""Images whose reconstructions are shown while the tokenizer trains."""


class TokenizerTask:
    """The tokenizer's training, as the engine sees it."""

    smaller = "lower tokenizer.image_size, set train.checkpoint_tower=true, or take machines with more memory"
    sample_name = "images"

    def __init__(self, job: StageJob, context: TrainContext, scratch: Path) -> None:
        self._job = job
        self._recipe = job.recipe
        self._scratch = scratch
        self._heldout: list[HeldoutBatch] | None = None
        self._teacher: FrozenTeacher | None = None
        """Judge of held-out scenes; None where there are none, or no validation was made yet."""
        self._config = job.recipe.train
        self._context = context
        self._state = _first_state(job, context, scratch)
        self._data = TrainDataLoader(job, context, scratch)
        self._shown: Tensor | None = None
        """Images whose reconstructions are shown, (B, 3, S, S) uint8."""
        self._last_images: Tensor | None = None
        """Images of the last step, likewise."""
        self.steps = self._config.steps
        self.batch_size = self._config.batch_size

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._state.step

    @step.setter
    def step(self, step: int) -> None:
        self._state.step = step

    @property
    def accumulate_steps(self) -> int:
        """Parts that a worker takes its share of a batch in."""
        return self._state.accumulate_steps

    @property
    def parts(self) -> TrainedParts:
        """Tokenizer, averages, discriminator and their optimisers."""
        state = self._state
        modules: dict[str, torch.nn.Module] = {"model": state.tokenizer}
        optimizers = {"optimizer": OptimizerOf(state.optimizer, state.tokenizer)}
        if state.average:
            modules["average"] = state.average
        if state.adversary:
            discriminator = state.adversary.discriminator
            modules["discriminator"] = discriminator
            optimizers["discriminator_optimizer"] = OptimizerOf(state.adversary.optimizer, discriminator)
        return TrainedParts(modules, optimizers)

    def batches(self, steps: range) -> Iterable[TrainBatch]:
        """Yield this worker's share of each step's images and stored targets."""
        return map_ahead(self._data.load, steps, threads=1, ahead=PREFETCHED_BATCHES)

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples in this worker's share of a step."""
        return self._data.sample_keys(step)

    def step_cost(self) -> StepCost | None:
        """Return the operations of this worker's share of a step, the GAN's once it takes part."""
        adversary = self._state.adversary
        with_gan = adversary is not None and adversary.takes_part(self.step - 1)
        whole = tokenizer_step_cost(self._recipe, with_gan=with_gan)
        if whole is None:
            return None
        return whole._replace(flop=whole.flop / self._context.world_size)

    def pictures(self) -> Mapping[str, Tensor]:
        """Return a few training images above their reconstructions."""
        if self._shown is None:
            size = self._recipe.tokenizer.image_size
            pictures = [sample.picture for sample in self._data.samples.first(NUM_SHOWN)]
            self._shown = to_tensor(pictures, size) if pictures else torch.empty(0, 3, size, size)
        if not len(self._shown):
            return {}
        with inference(self._state) as tokenizer:
            images = normalize(self._shown.to(self._context.device))
            reconstruction = tokenizer(images, pixel=True, semantic=False).reconstruction
        rows = torch.stack((self._shown, to_uint8(reconstruction).cpu()))
        # (2, B, 3, S, S) to (3, 2 S, B S)
        return {"reconstructions": rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)}

    def code_counts(self) -> Mapping[str, Tensor]:
        """Return how often the streams' codes occur in the last batch, or in a part that fits into memory."""
        assert self._last_images is not None, "a step was taken"
        size = len(self._last_images) // self.accumulate_steps
        with inference(self._state) as tokenizer:
            output = tokenizer(normalize(self._last_images[:size]), pixel=True, semantic=True)
        config = self._recipe.tokenizer
        return {
            "semantic": count_codes(output.semantic.ids, config.semantic.num_codes).cpu(),
            "pixel": count_codes(output.pixel.ids, config.pixel.num_codes).cpu(),
        }

    def validate(self) -> Mapping[str, Sum]:
        """Return losses and PSNR of held-out images, and the zero-shot accuracy of those that are scenes."""
        if self._heldout is None:
            self._heldout = self._open_heldout()
        return summed(self._heldout, self._measure)

    def _open_heldout(self) -> list[HeldoutBatch]:
        """Read the held-out images, and embed the captions that scenes are judged by."""
        samples = "targets" if self._recipe.targets.read_by_training else "filter"
        batches = heldout_batches(self._job, self._context, self._recipe.tokenizer.image_size, samples)
        if self._state.streams.semantic and any(batch.scenes for batch in batches):
            self._teacher = FrozenTeacher(self._job, self._context.device, self._scratch)
            self._teacher.embed(batches)
        return batches

    def _measure(self, batch: HeldoutBatch) -> Mapping[str, Sum]:
        images = batch.images.to(self._context.device)
        targets = self._data.targets(TrainBatch(batch.images, batch.pooled, batch.dense), images)
        metrics, pooled = measure_heldout(self._state, images, targets)
        sums = sums_of({name: value.item() for name, value in metrics.items()}, len(images))
        if self._teacher is not None and pooled is not None:
            sums.update(self._teacher.sums(batch, pooled))
        return sums

    def num_lost(self) -> int:
        """Return how many samples this worker lost to damage so far."""
        return self._data.samples.damage.num_lost

    def train_step(self, batch: TrainBatch, check: StepCheck) -> Mapping[str, float]:
        """Take the next step."""
        images = batch.images.to(self._context.device, non_blocking=True)
        self._last_images = images
        targets = self._data.targets(batch, images)
        return train_step(self._state, normalize(images), targets, check).present()

    def close(self) -> None:
        """End the threads that read ahead."""
        self._data.close()

    def accumulate_more(self) -> bool:
        """Take a share in the next larger number of parts that divides it."""
        share = self.batch_size // self._context.world_size
        for parts in range(self._state.accumulate_steps + 1, share + 1):
            if share % parts == 0:
                self._state.accumulate_steps = parts
                return True
        return False


def _first_state(job: StageJob, context: TrainContext, scratch: Path) -> TrainState:
    """Build the model that training begins with."""
    config = job.recipe.train
    torch.default_generator.manual_seed(config.seed)  # weights are drawn on the CPU
    model = _initial_model(job, scratch)
    apply_memory_layout(model, config)
    model.to(context.device)
    perceptual = open_perceptual(config.perceptual, scratch)
    if perceptual is not None:
        perceptual = perceptual.to(context.device)

    def wrap(tokenizer: DualTokenizer) -> torch.nn.Module:
        return data_parallel(tokenizer, context, config.parallel, tower_blocks(tokenizer.tower))

    try:
        return TrainState(model, config, perceptual, wrap=wrap)
    except ValueError as error:
        raise UserError(f"train: {error}") from None


def apply_memory_layout(model: DualTokenizer, train: TrainConfig) -> None:
    """Set the memory layout of weights and activations by the recipe."""
    if train.memory_format == "channels_last":
        for part in (model.post_quant, model.decoder):
            # torch's stub lacks this argument.
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if train.checkpoint_tower:
        checkpoint_gradients(model.tower)


def _initial_model(job: StageJob, scratch: Path) -> DualTokenizer:
    """Return fresh parts beside the teacher's tower, or the tokenizer that the recipe names, at its size."""
    recipe = job.recipe
    folder = recipe.train.start_from
    if folder is None:
        model = DualTokenizer(recipe.tokenizer)
        teacher = load_teacher(job.input("teacher").local_folder(scratch / "teacher"))
        model.init_tower(teacher.trunk)
        return model
    try:
        model = DualTokenizer.from_pretrained(Store(folder).local_folder(scratch / "start"))
        if model.config == recipe.tokenizer:
            return model
        return at_resolution(model, recipe.tokenizer)
    except ValueError as error:
        raise UserError(f"train.start_from={folder!r}: {' '.join(str(error).split())}") from error


def train_loop(settings: dict[str, Any], context: TrainContext) -> bool:
    """Train the tokenizer of a job, which `settings` holds; return whether its last step was taken."""
    return train(settings["job"], context, TokenizerTask)


def validate(settings: dict[str, Any], step: int) -> dict[str, float]:
    """Measure the tokenizer of a step's checkpoint on held-out samples, beside the training."""
    return validate_checkpoint(settings["job"], TokenizerTask, step)


def trained_model(job: StageJob, scratch: Path) -> UnitOutput:
    """Write the model of a training's last checkpoint as the output of the stage."""
    checkpoint = job_checkpoints(job).latest(scratch / "last")
    assert checkpoint is not None, "a training ends with a checkpoint"
    part = "average.module" if job.recipe.train.weight_ema else "model"
    with torch.random.fork_rng(devices=()):
        model = _model_like_the_trained(job, scratch)
    load_module(checkpoint, part, model, scratch / "last")
    model.save_pretrained(scratch)
    add_runs_to_card(scratch, checkpoint.receipt.runs)
    return UnitOutput(FILES, None)


def _model_like_the_trained(job: StageJob, scratch: Path) -> DualTokenizer:
    """Return a model to load the trained weights into."""
    if job.recipe.train.start_from is None:
        return DualTokenizer(job.recipe.tokenizer)
    return _initial_model(job, scratch)


class Worker:
    """Trains in this process; Ray Train runs `loop` in a group of processes."""

    loop = staticmethod(train_loop)
    validate = staticmethod(validate)
    give_up_validation = staticmethod(give_up_validation)
    output = staticmethod(trained_model)

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
            raise_if_stopped()
            return trained_model(self._job, scratch)
