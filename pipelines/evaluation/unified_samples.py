"""What a unified model makes of samples of a finished evaluation: drawings, descriptions and answers.

They are made again with the settings of the protocol, and come out as they were scored on a device like the
scores'.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.evaluation.described_scenes import describe
from dualtoken.pipelines.evaluation.evaluate import MODEL_INPUT
from dualtoken.pipelines.evaluation.evaluations import made_from
from dualtoken.pipelines.evaluation.sample_pictures import SamplePictures, shot
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.evaluation.unified_columns import draw_captions, image_codes
from dualtoken.pipelines.images.image_questions import Asked
from dualtoken.pipelines.inference.networks import best_device
from dualtoken.pipelines.inference.unified import ImageCodes, answer


def open_unified(result: SetResult) -> OpenedMllm:
    """Open the unified model that a result is of."""
    with scratch_folder() as scratch:
        folder = Store(made_from(result).inputs[MODEL_INPUT]).local_folder(Path(scratch))
        return open_mllm(str(folder), best_device())


class UnifiedSamples:
    """A unified model, and samples that it is shown again."""

    def __init__(self, opened: OpenedMllm, pictures: SamplePictures, keys: Sequence[bytes]) -> None:
        """Take the samples that are to be shown; they are encoded where texts are asked for."""
        self._opened = opened
        self._pictures = pictures
        self._keys = keys

    def drawings(self, keys: Sequence[bytes]) -> list[str]:
        """Return the drawing of each sample's first caption, `data:` URLs."""
        captions = [self._pictures.row(key)["captions"][0] for key in keys]
        levels = draw_captions(self._opened, captions, keys, self._pictures.protocol)
        return [shot(drawing) for drawing in levels]

    def descriptions(self, keys: Sequence[bytes]) -> list[str]:
        """Return the description of each sample's image."""
        return describe(self._opened, self._codes_of(keys), self._pictures.protocol.batch_size)

    def answers(self, key: bytes, questions: Sequence[Asked]) -> list[str]:
        """Return the answers to questions about a sample's image."""
        codes = self._codes_of([key])
        return [answer(self._opened, codes, asked.question) for asked in questions]

    def _codes_of(self, keys: Sequence[bytes]) -> ImageCodes:
        rows = [self._keys.index(key) for key in keys]
        return {stream: codes[rows] for stream, codes in self._codes.items()}

    @cached_property
    def _codes(self) -> ImageCodes:
        """The codes of all samples, in their order."""
        return image_codes(self._pictures.codes(self._keys))
