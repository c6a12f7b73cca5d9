"""Batches of the teacher's training: images and the tokens of their captions. B images, T tokens."""

from pathlib import Path

import torch
from torch import Tensor

from dualtoken.model.teacher.teacher import tokenize
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.dataset import Sample, TrainingSet
from dualtoken.pipelines.training.train_batches import rank_share
from dualtoken.pipelines.training.train_context import RankContext


class TeacherDataLoader:
    """Loads one rank's share of each step's images and captions; to be closed."""

    def __init__(self, job: StageJob, settings: TrainedTeacher, context: RankContext, scratch: Path) -> None:
        """Open the samples; raises `UserError` where they do not fill a batch."""
        self._settings = settings
        self._context = context
        self._pin_memory = context.device.type == "cuda"
        cpus = job.recipe.train.cpus_per_worker
        num_threads = job.recipe.reader.threads(cpus=cpus, beside_gpu=self._pin_memory)
        self.samples = TrainingSet(
            job, scratch / "samples", seed=settings.seed, num_threads=num_threads, samples="download"
        )
        if len(self.samples) < settings.batch_size:
            self.close()
            raise UserError(
                f"teacher.batch_size={settings.batch_size} is over the {len(self.samples)} training samples: "
                "lower it"
            )

    def close(self) -> None:
        """End the threads that read ahead."""
        self.samples.close()

    def load(self, step: int) -> tuple[Tensor, Tensor]:
        """Return a step's images, (B, 3, S, S) uint8, and caption tokens, (B, T).

        They are in pinned memory beside a GPU. Runs in a thread, ahead of the training.
        """
        settings = self._settings
        share = rank_share(settings.batch_size, self._context)
        side = settings.image_size
        images = torch.empty((len(share), 3, side, side), dtype=torch.uint8, pin_memory=self._pin_memory)
        captions = [""] * len(share)

        def take(place: int, sample: Sample) -> None:
            index = place - share.start
            images[index] = to_tensor([sample.picture], side)[0]
            captions[index] = sample.shard.caption(sample.row)

        self.samples.read(step * settings.batch_size, share, take)
        tokens = tokenize(captions, settings.text)
        if self._pin_memory:
            tokens = tokens.pin_memory()
        return images, tokens

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples in this rank's share of a step."""
        batch_size = self._settings.batch_size
        return self.samples.keys(step * batch_size, rank_share(batch_size, self._context))
