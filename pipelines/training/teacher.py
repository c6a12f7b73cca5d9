"""Teacher stage: trains a small SigLIP-style model, or copies a pretrained one into storage."""

import time
from contextlib import ExitStack
from pathlib import Path

import torch

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.config.tokenizer import NamedTower, TokenizerConfig, TowerConfig
from dualtoken.model.teacher.folder import CONFIG_FILE, WEIGHTS_FILE, copy_teacher_files
from dualtoken.model.teacher.teacher import (
    Teacher,
    export_open_clip,
    load_teacher,
    save_teacher,
)
from dualtoken.model.teacher.training import TeacherTrainer
from dualtoken.model.vision.towers import activation_of, tower_depth, tower_differs, tower_width
from dualtoken.pipelines.config.teacher import OpenClipTeacher, TrainedTeacher
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError, user_error_on_divergence
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.metrics_log import MetricsLog
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.teacher_batches import TeacherDataLoader

LOG_EVERY = 10
"""Steps between two lines of the metrics log."""
PREFETCHED_BATCHES = 2


class Worker:
    """Writes the teacher's folder in open_clip's own format, whatever it is made from."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `open_clip_config.json`, `open_clip_model.safetensors` and the text tokeniser's own files."""
        assert unit.rows == 0
        teacher = self._job.recipe.teacher
        if isinstance(teacher, TrainedTeacher):
            with sole_run(self._job.store()):
                train_teacher(self._job, teacher, scratch)
        elif isinstance(teacher, OpenClipTeacher):
            _fetch_open_clip(teacher, self._job.recipe.tokenizer, scratch)
        else:
            given = Store(teacher.folder).local_folder(scratch / "given")
            _copy_given(given, scratch)
        check_teacher(scratch, self._job.recipe.tokenizer)
        names = sorted(path.name for path in scratch.iterdir() if path.is_file())
        return UnitOutput(tuple(names), None)


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


def train_teacher(job: StageJob, settings: TrainedTeacher, folder: Path) -> None:
    """Train on all that was downloaded and is not held out, and save the model into `folder`."""
    device = stage_device(job)
    with (
        scratch_folder() as scratch,
        process_settings(job.recipe.train.cpus_per_worker),
        MetricsLog(job.store(), Path(scratch), job.label, settings.steps) as log,
        ExitStack() as stack,
    ):
        data_loader = stack.enter_context(TeacherDataLoader(job, settings, device, Path(scratch)))
        try:
            trainer = TeacherTrainer(settings, device)
        except ValueError as error:
            raise UserError(f"teacher: {error}") from None
        steps = range(settings.steps)
        batches = map_ahead(data_loader.load, steps, threads=1, ahead=PREFETCHED_BATCHES)
        started = time.monotonic()
        for step, (images, tokens) in zip(steps, batches, strict=True):
            with user_error_on_divergence():
                images_there = images.to(device, non_blocking=True)
                metrics = trainer.train_step(images_there, tokens.to(device, non_blocking=True))
            if step % LOG_EVERY == 0 or step == settings.steps - 1:
                num_images = (step + 1) * settings.batch_size
                images_per_second = num_images / (time.monotonic() - started)
                log.write(step, {**metrics._asdict(), "images_per_second": round(images_per_second, 1)})
    save_teacher(trainer.model, settings, folder)
