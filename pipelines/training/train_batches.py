"""Batches of the tokenizer's training: a rank's share of each step's images, and the teacher's targets.

B images, N tokens, W channels.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dualtoken.model.precision import tower_precision
from dualtoken.model.teacher.teacher import ImageTeacher, TeacherTargets, load_teacher
from dualtoken.model.vision.augment import random_crop
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.dataset import Sample, TrainingSet
from dualtoken.pipelines.training.train_context import RankContext


class TrainBatch(NamedTuple):
    """A rank's share of a step, in pinned memory beside a GPU."""

    images: Tensor
    """(B, 3, S, S), uint8."""
    pooled: Tensor | None
    """(B, W), float32, the teacher's pooled output; None where the teacher runs beside the training."""
    dense: Tensor | None
    """(B, N, W), float16 as it is stored, its tokens; None likewise."""


class TrainDataLoader:
    """Loads one rank's share of each step's batch; to be closed."""

    def __init__(self, job: StageJob, context: RankContext, scratch: Path) -> None:
        self._job = job
        self._context = context
        train = job.recipe.train
        beside_gpu = context.device.type == "cuda"
        num_threads = job.recipe.reader.threads(cpus=train.cpus_per_worker, beside_gpu=beside_gpu)
        has_stored_targets = job.recipe.targets.read_by_training
        self.samples = TrainingSet(
            job,
            scratch / "samples",
            seed=train.seed,
            num_threads=num_threads,
            samples="targets" if has_stored_targets else "filter",
        )
        self._pin_memory = beside_gpu
        self._teacher = None
        if not has_stored_targets:
            folder = job.input("teacher").local_folder(scratch / "teacher")
            self._teacher = ImageTeacher(load_teacher(folder)).to(context.device)

    def close(self) -> None:
        """End the threads that read ahead."""
        self.samples.close()

    def load(self, step: int) -> TrainBatch:
        """Read and decode a step's samples; runs in a thread, ahead of the training."""
        train = self._job.recipe.train
        share = rank_share(train.batch_size, self._context)
        batch = self._empty_batch(len(share))

        def take(place: int, sample: Sample) -> None:
            index = place - share.start
            batch.images[index] = self.view(sample)[0]
            if batch.pooled is not None and batch.dense is not None:
                target = sample.shard.target(sample.row)
                batch.pooled.numpy()[index] = target.pooled
                if target.dense is not None:
                    batch.dense.numpy()[index] = target.dense.reshape(batch.dense.shape[1:])

        self.samples.read(step * train.batch_size, share, take)
        return batch

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples in this rank's share of a step."""
        batch_size = self._job.recipe.train.batch_size
        return self.samples.keys(step * batch_size, rank_share(batch_size, self._context))

    def _empty_batch(self, size: int) -> TrainBatch:
        tokenizer = self._job.recipe.tokenizer
        side = tokenizer.image_size
        images = torch.empty((size, 3, side, side), dtype=torch.uint8, pin_memory=self._pin_memory)
        if self._teacher:
            return TrainBatch(images, None, None)
        width = tokenizer.tower.width
        pooled = torch.empty((size, width), dtype=torch.float32, pin_memory=self._pin_memory)
        # Of `pooled` targets no loss reads tokens: none stand in their place.
        num_tokens = 0 if self._job.recipe.targets.stored == "pooled" else tokenizer.grid_size**2
        tokens = (size, num_tokens, width)
        dense = torch.empty(tokens, dtype=torch.float16, pin_memory=self._pin_memory)
        return TrainBatch(images, pooled, dense)

    def view(self, sample: Sample) -> Tensor:
        """Return what the network sees of a sample, (1, 3, S, S), uint8.

        A random crop is drawn from seed, epoch and key: a run that resumes, another number of ranks and
        another batch size draw the same.
        """
        train = self._job.recipe.train
        size = self._job.recipe.tokenizer.image_size
        picture = sample.picture
        if train.random_crop:
            picture = random_crop(picture, size, train.random_crop, sample.generator(train.seed))
        return to_tensor([picture], size)

    def targets(self, batch: TrainBatch, images: Tensor) -> TeacherTargets:
        """Return the teacher's targets for a batch: the stored ones, or those that it computes now.

        `images` are the batch's images on the device; the teacher sees them in the run's precision. Stored
        tokens stay float16; the loss computes in float32.
        """
        recipe = self._job.recipe
        device = self._context.device
        if self._teacher:
            with tower_precision(device, recipe.train.precision):
                return self._teacher.targets(images, recipe.tokenizer.semantic_block)
        assert batch.pooled is not None
        assert batch.dense is not None
        pooled = batch.pooled.to(device, non_blocking=True)
        return TeacherTargets(pooled, batch.dense.to(device, non_blocking=True))


def rank_share(batch_size: int, context: RankContext) -> range:
    """Return the places in the whole batch that a rank takes: one after the other, as micro-batches are.

    So the ranks' vectors, one rank after the other, are those of one worker in their order, and a codebook
    restarts at the same ones.
    """
    size, rest = divmod(batch_size, context.world_size)
    assert not rest, "a recipe's batch is a multiple of its workers"
    return range(context.rank * size, (context.rank + 1) * size)
