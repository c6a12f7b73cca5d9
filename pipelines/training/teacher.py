"""Teacher stage: trains a small SigLIP-style model, or copies a pretrained one into storage."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.config.tokenizer import NamedTower, TokenizerConfig, TowerConfig
from dualtoken.model.optimizer import StepCheck
from dualtoken.model.teacher.folder import CONFIG_FILE, WEIGHTS_FILE, copy_teacher_files
from dualtoken.model.teacher.teacher import (
    Teacher,
    build_teacher,
    export_open_clip,
    load_teacher,
    save_teacher,
    tokenize,
)
from dualtoken.model.teacher.training import TeacherTrainer
from dualtoken.model.vision.towers import activation_of, tower_depth, tower_differs, tower_width
from dualtoken.pipelines.config.teacher import OpenClipTeacher, TrainedTeacher
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.checkpoint_saver import load_module
from dualtoken.pipelines.training.engine import raise_if_stopped, train
from dualtoken.pipelines.training.heldout_images import HeldoutBatch, heldout_batches, summed, sums_of
from dualtoken.pipelines.training.parallel import data_parallel
from dualtoken.pipelines.training.resume import job_checkpoints
from dualtoken.pipelines.training.state_tensors import OptimizerOf, TrainedParts
from dualtoken.pipelines.training.task import Sum
from dualtoken.pipelines.training.teacher_batches import TeacherDataLoader
from dualtoken.pipelines.training.train_context import SingleProcessContext, TrainContext
from dualtoken.pipelines.training.validation_tasks import give_up_validation, validate_checkpoint
from dualtoken.pipelines.training.zero_shot import zero_shot_sums

PREFETCHED_BATCHES = 2
TEXTS_AT_ONCE = 512
"""Texts that are embedded together to judge held-out scenes."""


def _copy_given(given: Path, folder: Path) -> None:
    """Copy a given folder's known files; raises `UserError` where it lacks one, or asks for code to run."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (given / name).is_file():
            raise UserError(f"teacher.folder has no {name}: give an open_clip checkpoint folder")
    try:
        copy_teacher_files(given, folder)
    except ValueError as error:
        raise UserError(f"teacher: {error}") from None


def check_teacher(folder: Path, tokenizer: TokenizerConfig) -> None:
    """Raise `UserError` where the tokenizer cannot start from this teacher."""
    try:
        teacher = load_teacher(folder)
    except ValueError as error:
        raise UserError(f"teacher: {error}") from None
    _require_same_architecture(teacher, tokenizer)
    _require_same_activation(teacher, tokenizer.tower)
    _require_same_statistics(teacher, tokenizer.tower)


def _require_same_architecture(teacher: Teacher, tokenizer: TokenizerConfig) -> None:
    wanted = (tokenizer.tower.depth, tokenizer.tower.width, tokenizer.image_size)
    found = (tower_depth(teacher.trunk), tower_width(teacher.trunk), teacher.image_size)
    if wanted != found:
        raise UserError(
            f"tokenizer.tower has (depth, width, image_size) {wanted}, the teacher {found}: make them equal"
        )
    different_weights = tower_differs(teacher.trunk, tokenizer.tower, tokenizer.image_size)
    if different_weights:
        raise UserError(
            f"tokenizer.tower and the teacher's differ in {len(different_weights)} weights, "
            f"such as {different_weights[0]}: name the same model"
        )


def _require_same_activation(teacher: Teacher, tower: TowerConfig | NamedTower) -> None:
    """Compare activations; a named tower has its model's own."""
    if not isinstance(tower, TowerConfig):
        return
    activation = activation_of(teacher.trunk)
    if tower.activation != activation:
        raise UserError(
            f"tokenizer.tower.activation={tower.activation}, the teacher computes {activation}: "
            "make them equal"
        )


def _require_same_statistics(teacher: Teacher, tower: TowerConfig | NamedTower) -> None:
    """Compare the mean and standard deviation of images; only a named tower sets them."""
    if not isinstance(tower, NamedTower):
        return
    mean = teacher.mean.flatten()
    std = teacher.std.flatten()
    teacher_statistics = torch.stack((mean.cpu(), std.cpu()))
    if not torch.allclose(torch.tensor(tower.statistics), teacher_statistics, atol=1e-4):
        raise UserError(
            f"tokenizer.tower expects images of mean and std {tower.statistics}: "
            f"set tower.mean={mean.tolist()} and tower.std={std.tolist()}"
        )


def _fetch_open_clip(teacher: OpenClipTeacher, tokenizer: TokenizerConfig, folder: Path) -> None:
    tower = tokenizer.tower if isinstance(tokenizer.tower, TowerConfig) else None
    try:
        export_open_clip(teacher.model, teacher.pretrained, folder, tower)
    except ValueError as error:
        raise UserError(f"teacher.{error}") from None


class TeacherTask:
    """The training of a teacher, as the engine sees it; several workers train it by DDP."""

    accumulate_steps = 1
    smaller = "lower teacher.batch_size: the loss compares all of a batch's images and texts"
    sample_name = "images"

    def __init__(self, job: StageJob, context: TrainContext, scratch: Path) -> None:
        teacher = job.recipe.teacher
        assert isinstance(teacher, TrainedTeacher)
        self._job = job
        self._settings = teacher
        self._context = context
        self._heldout: list[HeldoutBatch] | None = None
        try:
            # FSDP2 shards no scalars, such as the loss's scale; a teacher that is trained here is small.
            self._trainer = TeacherTrainer(
                teacher, context.device, wrap=lambda model: data_parallel(model, context, "ddp")
            )
        except ValueError as error:
            raise UserError(f"teacher: {error}") from None
        self._data = TeacherDataLoader(job, teacher, context, scratch)
        self.steps = teacher.steps
        self.batch_size = teacher.batch_size

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._trainer.step

    @step.setter
    def step(self, step: int) -> None:
        self._trainer.step = step

    @property
    def parts(self) -> TrainedParts:
        """The teacher and its optimiser."""
        model = self._trainer.model
        return TrainedParts({"model": model}, {"optimizer": OptimizerOf(self._trainer.optimizer, model)})

    def batches(self, steps: range) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield this worker's share of each step's images and caption tokens."""
        return map_ahead(self._data.load, steps, threads=1, ahead=PREFETCHED_BATCHES)

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples in this worker's share of a step."""
        return self._data.sample_keys(step)

    def validate(self) -> Mapping[str, Sum]:
        """Return loss and accuracy on held-out pairs, and the zero-shot accuracy of those that are scenes.

        Each batch of pairs is compared with itself.
        """
        size = self._settings.image_size
        if self._heldout is None:
            self._heldout = heldout_batches(self._job, self._context, size, "download")
        return summed(self._heldout, self._measure)

    def _measure(self, batch: HeldoutBatch) -> Mapping[str, Sum]:
        images = batch.images.to(self._context.device)
        pairs = self._trainer.measure_heldout(images, self._tokens(batch.captions))
        sums = sums_of(pairs.metrics, len(images))
        sums.update(zero_shot_sums(batch, pairs.images, self._embed_texts))
        return sums

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        parts = batched(texts, TEXTS_AT_ONCE)
        return torch.cat([self._trainer.embed_texts(self._tokens(part)) for part in parts])

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        return tokenize(texts, self._settings.text).to(self._context.device)

    def num_lost(self) -> int:
        """Return how many samples this worker lost to damage so far."""
        return self._data.samples.damage.num_lost

    def train_step(self, batch: tuple[Tensor, Tensor], check: StepCheck) -> Mapping[str, float]:
        """Take the next step."""
        images, tokens = batch
        device = self._context.device
        images = images.to(device, non_blocking=True)
        tokens = tokens.to(device, non_blocking=True)
        return self._trainer.train_step(images, tokens, check)._asdict()

    def close(self) -> None:
        """End the threads that read ahead."""
        self._data.close()

    def accumulate_more(self) -> bool:
        """Return False: the loss is not a mean over images alone."""
        return False


def train_loop(settings: dict[str, Any], context: TrainContext) -> bool:
    """Train the teacher of a job, which `settings` holds; return whether its last step was taken."""
    return train(settings["job"], context, TeacherTask)


def validate(settings: dict[str, Any], step: int) -> dict[str, float]:
    """Measure the teacher of a step's checkpoint on held-out samples, beside the training."""
    return validate_checkpoint(settings["job"], TeacherTask, step)


def trained_teacher(job: StageJob, scratch: Path) -> UnitOutput:
    """Write the model of a training's last checkpoint as the output of the stage."""
    teacher = job.recipe.teacher
    assert isinstance(teacher, TrainedTeacher)
    with scratch_folder() as name:
        checkpoint = job_checkpoints(job).latest(Path(name))
        assert checkpoint is not None, "a training ends with a checkpoint"
        with torch.random.fork_rng(devices=()):
            model = build_teacher(teacher)
        load_module(checkpoint, "model", model, Path(name))
    save_teacher(model, teacher, scratch)
    return _checked_output(job, scratch)


def _checked_output(job: StageJob, scratch: Path) -> UnitOutput:
    """Return a teacher's folder as the stage's output, once a tokenizer could start from it."""
    check_teacher(scratch, job.recipe.tokenizer)
    names = sorted(path.name for path in scratch.iterdir() if path.is_file())
    return UnitOutput(tuple(names), None)


class Worker:
    """Writes the teacher's folder in open_clip's own format, whatever it is made from."""

    loop = staticmethod(train_loop)
    validate = staticmethod(validate)
    give_up_validation = staticmethod(give_up_validation)
    output = staticmethod(trained_teacher)

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `open_clip_config.json`, `open_clip_model.safetensors` and the text tokeniser's own files."""
        assert unit.rows == 0
        teacher = self._job.recipe.teacher
        if isinstance(teacher, TrainedTeacher):
            with sole_run(self._job.store()):
                train_loop({"job": self._job}, SingleProcessContext(stage_device(self._job)))
                raise_if_stopped()
                return trained_teacher(self._job, scratch)
        if isinstance(teacher, OpenClipTeacher):
            _fetch_open_clip(teacher, self._job.recipe.tokenizer, scratch)
        else:
            given = Store(teacher.folder).local_folder(scratch / "given")
            _copy_given(given, scratch)
        return _checked_output(self._job, scratch)
