"""Reads and decodes the samples of one image shard ahead of the encoder, in bounded memory.

Shapes: B samples a batch, V variants (crops and their mirror images) of each, N = B x V, S pixels a side. One
task reads, decodes, crops and resizes one sample, and writes its levels into the sample's place in the batch.
So nothing larger than the levels outlives an image's decoding.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from threading import Condition
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.model.vision.transform import Transform
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.images.crops import Crop, views
from dualtoken.pipelines.images.decoding import decode_rgb, peek_size
from dualtoken.pipelines.images.samples import KeptSample, batched
from dualtoken.pipelines.images.shards import ImageShard

BATCHES_AHEAD = 2
"""Batches that are decoded, or being decoded, while one is encoded."""
PIXELS_AT_ONCE = 2**26
"""Pixels of all images that a worker decodes at a time: 200 MB as RGB. A larger image is decoded alone."""


class Undecodable(NamedTuple):
    """Failure to decode a stored image."""

    detail: str


Decoded = tuple[Crop, ...] | Undecodable
"""Outcome of one sample: its crops in order of variant, or why there is none."""


class ImageBatch(NamedTuple):
    """Samples as the network sees them."""

    rows: Sequence[KeptSample]
    levels: UInt8[Tensor, "N 3 S S"]
    """RGB levels, all variants of a sample side by side.

    Black where a sample could not be decoded, so that the others keep their places.
    """
    found: list[Decoded]
    """Outcomes, one for each sample."""


class PixelBudget:
    """Lets threads decode together while there is room for their images.

    An image larger than all of it waits until it is alone.
    """

    def __init__(self, pixels: int) -> None:
        self._total = pixels
        self._free = pixels
        self._changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Reserve room for an image while the block decodes it."""
        pixels = min(pixels, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


class _Task(NamedTuple):
    """One sample to decode."""

    sample: KeptSample
    places: UInt8[Tensor, "V 3 S S"]
    """The sample's part of its batch's levels, to be filled."""


class ImageStream:
    """Batches of a shard's samples, cropped as the recipe says and resized by the tokenizer's transform."""

    def __init__(self, config: PretokenizeConfig, transform: Transform, *, beside_gpu: bool) -> None:
        self._config = config
        self._transform = transform
        self._pin_memory = beside_gpu
        self._num_threads = config.threads(beside_gpu=beside_gpu)
        self._batch_size = max(1, config.batch_size // config.num_variants)
        """Samples a batch; each has all of its variants in the same one."""
        self._budget = PixelBudget(PIXELS_AT_ONCE)

    def batches(self, shard: ImageShard, rows: Sequence[KeptSample]) -> Generator[ImageBatch]:
        """Yield the rows in order; an error of reading the shard is raised, a damaged image `Undecodable`."""
        buffers: deque[UInt8[Tensor, "B V 3 S S"]] = deque()
        """Levels of the batches that are begun and not yet yielded."""

        def tasks() -> Iterator[_Task]:
            for samples in batched(rows, self._batch_size):
                buffers.append(self._empty_levels(len(samples)))
                for sample, places in zip(samples, buffers[-1], strict=True):
                    yield _Task(sample, places)

        def decode(task: _Task) -> Decoded:
            return self._decode_into(task.places, shard, task.sample)

        with closing(self._map_ahead(decode, tasks())) as outcomes:
            for samples in batched(rows, self._batch_size):
                found = list(islice(outcomes, len(samples)))
                levels = buffers.popleft()
                yield ImageBatch(samples, levels.flatten(0, 1), found)

    def _map_ahead(self, decode: Callable[[_Task], Decoded], tasks: Iterator[_Task]) -> Generator[Decoded]:
        """Yield the tasks' outcomes in order, `BATCHES_AHEAD` whole batches ahead where there are threads."""
        if self._num_threads:
            yield from map_ahead(decode, tasks, self._num_threads, ahead=BATCHES_AHEAD * self._batch_size)
        else:
            # In the caller's thread: on a CPU, switching threads takes a tenth of a small model's time.
            yield from map(decode, tasks)

    def _empty_levels(self, num_samples: int) -> UInt8[Tensor, "B V 3 S S"]:
        size = self._transform.image_size
        shape = (num_samples, self._config.num_variants, 3, size, size)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)

    def _decode_into(
        self, places: UInt8[Tensor, "V 3 S S"], shard: ImageShard, sample: KeptSample
    ) -> Decoded:
        """Write a sample's variants into their places; black where it cannot be decoded."""
        data = shard.image(sample.row)
        width, height = peek_size(data)
        with self._budget.taken(width * height):
            try:
                picture = decode_rgb(data)
            except UnreadableImageError as error:
                places.zero_()
                return Undecodable(str(error))
            crops: list[Crop] = []
            for view in views(picture, self._config.crops, sample.key, self._transform.fit):
                (levels,) = self._transform.levels([view.picture])
                for crop in view.crops:
                    places[len(crops)] = levels.flip(-1) if crop.flipped else levels
                    crops.append(crop)
            return tuple(crops)
