"""Batches of the tokenizer's training: a rank's share of each step's images, and the teacher's targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualtoken.model.precision import tower_precision
from dualtoken.model.teacher.teacher import TeacherTargets, load_teacher
from dualtoken.model.vision.augment import random_crop
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.dataset import TrainingSet, batch_numbers
from dualtoken.pipelines.training.train_context import RankContext


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
