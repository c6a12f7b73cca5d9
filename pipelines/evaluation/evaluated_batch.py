"""A batch of an evaluation: samples with pictures, codes and reconstructions. B images of S by S pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.evaluation.closeness import through_jpeg
from dualtoken.pipelines.images.image_questions import Asked
from dualtoken.pipelines.inference.networks import Array, StreamCodes, TokenizerRunner

Column = np.ndarray[Any, Any]
"""A metric's values, a float64 for each sample; NaN for one that the metric says nothing of."""


@dataclass(frozen=True, slots=True)
class EvaluatedSample:
    """A sample whose image gave a picture."""

    key: bytes
    picture: Image.Image
    """The part of it that the protocol looks at."""
    captions: list[str]
    label: int | None
    """Number of its class."""
    cluster: str | None
    description: str
    """JSON of a scene's contents; empty for every other image."""
    questions: tuple[Asked, ...] = ()


class EvaluatedBatch:
    """Samples as the networks see them: always as many as the protocol says, the last one repeated.

    A last batch of another size would round in another way than the others.
    """

    def __init__(
        self,
        samples: Sequence[EvaluatedSample],
        tokenizer: TokenizerRunner,
        protocol: EvaluationProtocol,
        stored: StreamCodes | None = None,
    ) -> None:
        """Encode samples; `stored` are codes of theirs that are taken instead, one row each."""
        self.samples = samples
        self.size = len(samples)
        """Number of samples, without the padding; every property below has the padding too."""
        self._tokenizer = tokenizer
        self._protocol = protocol
        pictures = [sample.picture for sample in samples]
        self.pictures = pictures + [pictures[-1]] * (protocol.batch_size - len(pictures))
        self.originals: UInt8[Tensor, "B 3 S S"] = tokenizer.levels(self.pictures).cpu()
        if stored is None:
            self.codes: StreamCodes = tokenizer.encode_levels(self.originals)
        else:
            self.codes = StreamCodes(semantic=self._padded(stored.semantic), pixel=self._padded(stored.pixel))

    def _padded(self, codes: Array) -> Array:
        """Repeat the last row, as the last picture is."""
        return np.concatenate([codes, np.repeat(codes[-1:], len(self.pictures) - len(codes), axis=0)])

    def own_codes(self) -> StreamCodes:
        """Return the codes without the padding."""
        return StreamCodes(self.codes.semantic[: self.size], self.codes.pixel[: self.size])

    @cached_property
    def reconstructions(self) -> UInt8[Tensor, "B 3 S S"]:
        """Images that the pixel codes stand for, by the protocol's cast."""
        if self._protocol.cast == "truncate":
            return self._tokenizer.decode_truncated(self.codes.pixel).cpu()
        return self._tokenizer.decode(self.codes.pixel).cpu()

    @cached_property
    def codes_of_reconstructions(self) -> StreamCodes:
        """Codes of the reconstructions."""
        return self._tokenizer.encode_levels(self.reconstructions)

    @cached_property
    def codes_through_jpeg(self) -> StreamCodes:
        """Codes of the images after JPEG."""
        return self._tokenizer.encode_levels(
            through_jpeg(self.originals, self._protocol.agreement_jpeg_quality)
        )

    @cached_property
    def codes_alone(self) -> StreamCodes:
        """Codes of the images, each encoded by itself; without the padding."""
        alone = [self._tokenizer.encode_levels(image[None]) for image in self.originals[: self.size]]
        return StreamCodes(
            semantic=np.concatenate([codes.semantic for codes in alone]),
            pixel=np.concatenate([codes.pixel for codes in alone]),
        )
