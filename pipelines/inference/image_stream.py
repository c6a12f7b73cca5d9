"""Reads and decodes one image shard's samples ahead of the encoder, in bounded memory.

B samples of a batch, V variants of each, N = B times V, S pixels a side. A task reads, decodes, cuts and resizes a sample and writes
its levels into the sample's place in the batch, so that of an image nothing larger outlives its decoding.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.vision.decode import error_text, open_encoded
from dualtoken.model.vision.transform import Transform
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.images.crops import Crop, views
from dualtoken.pipelines.images.samples import KeptSample, batched, decode_rgb
from dualtoken.pipelines.images.shards import ImageShard

Result = TypeVar("Result")
BATCHES_AHEAD = 2
"""Decoded, or being decoded, while one is encoded."""
PIXELS_AT_ONCE = 2**26
"""Of all images that a worker's threads are decoding: 200 MB as RGB. A larger image is decoded alone."""


class Undecodable(NamedTuple):
    """Why a stored image gave no picture."""

    detail: str


class ImageBatch(NamedTuple):
    """Samples as the network sees them."""

    rows: Sequence[KeptSample]
    levels: UInt8[Tensor, "N 3 S S"]
    """All variants of a sample side by side; black where the sample could not be decoded, so that no other one's place changes."""
    found: list[tuple[Crop, ...] | Undecodable]
    """By sample, the crops in order of variant."""


class PixelBudget:
    """Lets threads decode together while there is room for their images; one larger than all of it waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Hold room for an image while the block decodes it."""
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


class ImageStream:
    """Batches of a shard's samples, as the recipe cuts them and the tokenizer's transform shows them."""

    def __init__(self, config: PretokenizeConfig, transform: Transform, *, beside_gpu: bool) -> None:
        self._config, self._transform, self._pinned = config, transform, beside_gpu
        self._threads = config.threads(beside_gpu=beside_gpu)
        self._room = PixelBudget(PIXELS_AT_ONCE)

    def batches(self, shard: ImageShard, rows: Sequence[KeptSample]) -> Generator[ImageBatch]:
        """Yield the rows in order; an error of reading the shard is raised, a damaged image is `Undecodable`."""
        pool = ThreadPoolExecutor(self._threads, "decode") if self._threads else _InTurn()
        waiting: deque[_Filling] = deque()
        try:
            for part in batched(rows, max(1, self._config.batch_size // self._config.num_variants)):
                waiting.append(self._begin(pool, shard, part))
                if len(waiting) > (BATCHES_AHEAD if self._threads else 0):
                    yield waiting.popleft().batch()
            while waiting:
                yield waiting.popleft().batch()
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: Executor, shard: ImageShard, rows: Sequence[KeptSample]) -> "_Filling":
        size, variants = self._transform.image_size, self._config.num_variants
        levels = torch.empty((len(rows), variants, 3, size, size), dtype=torch.uint8, pin_memory=self._pinned)
        return _Filling(
            rows,
            levels,
            [pool.submit(self._fill, shard, row, places) for row, places in zip(rows, levels, strict=True)],
        )

    def _fill(
        self, shard: ImageShard, row: KeptSample, places: UInt8[Tensor, "V 3 S S"]
    ) -> tuple[Crop, ...] | Undecodable:
        data = shard.image(row.row)
        with self._room.taken(_pixels(data)):
            picture = _decode(data)
            if isinstance(picture, Undecodable):
                places.zero_()
                return picture
            found: list[Crop] = []
            for view in views(picture, self._config.crops, row.key, self._transform.fit):
                (levels,) = self._transform.levels([view.picture])
                for crop in view.crops:
                    places[len(found)] = levels.flip(-1) if crop.flipped else levels
                    found.append(crop)
            return tuple(found)


class _InTurn(Executor):
    """Does at once what it is asked to, for a CPU: handing the interpreter to and fro would take a tenth of a small model's time."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":  # noqa: ANN401
        done: Future[Result] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _Filling(NamedTuple):
    """A batch whose samples are being decoded."""

    rows: Sequence[KeptSample]
    levels: UInt8[Tensor, "B V 3 S S"]
    parts: "list[Future[tuple[Crop, ...] | Undecodable]]"

    def batch(self) -> ImageBatch:
        return ImageBatch(self.rows, self.levels.flatten(0, 1), [part.result() for part in self.parts])


def _pixels(data: bytes) -> int:
    """Return an image's pixels as its header says, or 0 where it has none to read."""
    try:
        with open_encoded(data) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001  (decoding meets the same error, and names it)
        return 0


def _decode(data: bytes) -> Image.Image | Undecodable:
    try:
        return decode_rgb(data)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (a decoder of damaged bytes may raise anything; it is this row's reason)
        return Undecodable(error_text(error))
