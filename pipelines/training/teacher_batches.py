"""Batches of the teacher's training: images and the tokens of their captions. B images, T tokens."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dualtoken.model.teacher.teacher import tokenize
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.dataset import Sample, TrainingSet


class TeacherDataLoader:
    """Loads batches of images and captions; close it, or use it in a `with` block."""

    def __init__(self, job: StageJob, settings: TrainedTeacher, device: torch.device, scratch: Path) -> None:
        """Open the samples; raises `UserError` where they do not fill a batch."""
        self._settings = settings
        self._pin_memory = device.type == "cuda"
        cpus = job.recipe.train.cpus_per_worker
        num_threads = job.recipe.reader.threads(cpus=cpus, beside_gpu=self._pin_memory)
        self.samples = TrainingSet(
            job, scratch / "samples", seed=settings.seed, num_threads=num_threads, with_targets=False
        )
        if len(self.samples) < settings.batch_size:
            self.close()
            raise UserError(
                f"teacher.batch_size={settings.batch_size} is over the {len(self.samples)} training samples: "
                "lower it"
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the threads that read ahead."""
        self.samples.close()

    def load(self, step: int) -> tuple[Tensor, Tensor]:
        """Return a step's images, (B, 3, S, S) uint8, and caption tokens, (B, T).

        They are in pinned memory beside a GPU. Runs in a thread, ahead of the training.
        """
        settings = self._settings
        size = settings.batch_size
        side = settings.image_size
        images = torch.empty((size, 3, side, side), dtype=torch.uint8, pin_memory=self._pin_memory)
        captions = [""] * size

        def take(place: int, sample: Sample) -> None:
            images[place] = to_tensor([sample.picture], side)[0]
            captions[place] = sample.shard.caption(sample.row)

        self.samples.read(step * size, range(size), take)
        tokens = tokenize(captions, settings.text)
        if self._pin_memory:
            tokens = tokens.pin_memory()
        return images, tokens
