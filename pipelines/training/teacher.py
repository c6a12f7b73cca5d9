"""Teacher: trains a small SigLIP-style model on the corpora's captions, or brings a pretrained one into storage."""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.config.tokenizer import NamedTower, TokenizerConfig, TowerConfig
from dualtoken.model.teacher.teacher import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Teacher,
    export_open_clip,
    load_teacher,
    save_teacher,
    tokenize,
)
from dualtoken.model.teacher.training import TeacherTrainer
from dualtoken.model.vision.towers import activation_of, tower_depth, tower_differs, tower_width
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.teacher import OpenClipTeacher, TrainedTeacher
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.errors import UserError, user_error_on_divergence
from dualtoken.pipelines.inference.networks import set_num_threads, stage_device
from dualtoken.pipelines.training.dataset import TrainingSet, ahead, batch_numbers
from dualtoken.pipelines.training.metrics_log import MetricsLog

LOG_EVERY = 10
"""Steps."""


class Worker:
    """Makes the teacher's folder, in open_clip's own format, whatever it comes from."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `open_clip_config.json`, `open_clip_model.safetensors` and what a text tokeniser needs beside them."""
        assert unit.rows == 0
        teacher = self._job.recipe.teacher
        if isinstance(teacher, TrainedTeacher):
            train_teacher(self._job, teacher, scratch)
        elif isinstance(teacher, OpenClipTeacher):
            _fetch(teacher, self._job.recipe.tokenizer, scratch)
        else:
            shutil.copytree(
                Store(teacher.folder).local_folder(scratch / "given"), scratch, dirs_exist_ok=True
            )
        check_teacher(scratch, self._job.recipe.tokenizer)
        return UnitOutput(tuple(sorted(path.name for path in scratch.iterdir() if path.is_file())), None)


def check_teacher(folder: Path, tokenizer: TokenizerConfig) -> None:
    """Raise `UserError` where the tokenizer cannot start from this teacher."""
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
        raise UserError(f"teacher.folder has no {missing[0]}: give an open_clip checkpoint folder")
    try:
        teacher = load_teacher(folder)
    except ValueError as error:
        raise UserError(f"teacher: {error}") from None
    wanted = (tokenizer.tower.depth, tokenizer.tower.width, tokenizer.image_size)
    if wanted != (found := (tower_depth(teacher.trunk), tower_width(teacher.trunk), teacher.image_size)):
        raise UserError(
            f"tokenizer.tower has (depth, width, image_size) {wanted}, the teacher {found}: make them equal"
        )
    if differ := tower_differs(teacher.trunk, tokenizer.tower, tokenizer.image_size):
        raise UserError(
            f"tokenizer.tower and the teacher's differ in {len(differ)} weights, such as {differ[0]}: name the same model"
        )
    if isinstance(tower := tokenizer.tower, TowerConfig) and tower.activation != (
        found := activation_of(teacher.trunk)
    ):
        raise UserError(
            f"tokenizer.tower.activation={tower.activation}, the teacher computes {found}: make them equal"
        )
    if isinstance(tower, NamedTower) and not _same_statistics(tower, teacher):
        mean, std = (part.flatten().tolist() for part in (teacher.mean, teacher.std))
        raise UserError(
            f"tokenizer.tower expects images of mean and std {tower.statistics}: set tower.mean={mean} and tower.std={std}"
        )


def _same_statistics(tower: NamedTower, teacher: Teacher) -> bool:
    ours, theirs = (
        torch.tensor(tower.statistics),
        torch.stack((teacher.mean.flatten().cpu(), teacher.std.flatten().cpu())),
    )
    return torch.allclose(ours, theirs, atol=1e-4)


def _fetch(teacher: OpenClipTeacher, tokenizer: TokenizerConfig, folder: Path) -> None:
    tower = tokenizer.tower if isinstance(tokenizer.tower, TowerConfig) else None
    try:
        export_open_clip(teacher.model, teacher.pretrained, folder, tower)
    except ValueError as error:
        raise UserError(f"teacher.{error}") from None


def train_teacher(job: StageJob, settings: TrainedTeacher, folder: Path) -> None:
    """Train on all that was downloaded and is not held out, and save the model into `folder`."""
    set_num_threads(job.recipe.train.cpus_per_worker)
    device = stage_device(job)
    with (
        scratch_folder() as scratch,
        MetricsLog(job.store(), Path(scratch), job.label, settings.steps) as log,
    ):
        samples = TrainingSet(job, Path(scratch), with_targets=False)
        if len(samples) < settings.batch_size:
            raise UserError(
                f"teacher.batch_size={settings.batch_size} is over the {len(samples)} training samples: lower it"
            )
        trainer = TeacherTrainer(settings, device)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            numbers = batch_numbers(len(samples), settings.batch_size, settings.seed, step)
            images = to_tensor([samples.image(number) for number in numbers], settings.image_size)
            return images, tokenize([samples.caption(number) for number in numbers], settings.text)

        started = time.monotonic()
        for step, (images, tokens) in ahead(batch, range(settings.steps)):
            with user_error_on_divergence():
                metrics = trainer.train_step(images.to(device), tokens.to(device))
            if step % LOG_EVERY == 0 or step == settings.steps - 1:
                rate = (step + 1) * settings.batch_size / (time.monotonic() - started)
                log.write(step, {**metrics._asdict(), "images_per_second": round(rate, 1)})
    save_teacher(trainer.model, settings, folder)
