"""Batches of the teacher's training: images and the tokens of their captions."""

from torch import Tensor

from dualtoken.model.teacher.teacher import tokenize
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.training.dataset import TrainingSet, batch_numbers


class TeacherDataLoader:
    """Loads batches of images and captions."""

    def __init__(self, samples: TrainingSet, settings: TrainedTeacher) -> None:
        self._samples = samples
        self._settings = settings

    def load(self, step: int) -> tuple[Tensor, Tensor]:
        """Return a step's images and caption tokens; runs in a thread, ahead of the training."""
        settings = self._settings
        numbers = batch_numbers(len(self._samples), settings.batch_size, settings.seed, step)
        decoded = self._samples.decode(numbers, lambda _, picture: to_tensor([picture], settings.image_size))
        captions = [self._samples.caption(number) for number in decoded.numbers]
        return decoded.levels, tokenize(captions, settings.text)
