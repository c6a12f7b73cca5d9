"""The training samples of a recipe: image bytes from the shards, targets from the Arrow files.

Which samples a step takes is a pure function of (seed, step): see `sample_sequence.py`. Nothing is opened
before it is needed or about to be. Of remote corpora the shards of the window are copied into the machine's
cache, and ahead of the training those of the next.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualtoken.infra.scratch import shared_scratch_folder
from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb, peek_size
from dualtoken.pipelines.inference.image_stream import PIXELS_AT_ONCE, PixelBudget
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.training.damage import DamageLog
from dualtoken.pipelines.training.open_shard import OpenShard
from dualtoken.pipelines.training.sample_index import Selection, open_sample_index, places_in_shards
from dualtoken.pipelines.training.sample_sequence import SampleSequence, WindowOfRun
from dualtoken.pipelines.training.shard_files import ShardFiles
from dualtoken.pipelines.training.shard_pool import ShardPool

_FILLED = 0.9
"""Share of the cache that shards may fill: it evicts down to that."""


_MOST_TRIED = 1000
"""Samples that are tried, where a few are to be shown."""


class Sample(NamedTuple):
    """A sample that could be decoded."""

    picture: Image.Image
    shard: OpenShard
    row: int
    """Place among the samples of its shard."""
    epoch: int
    """Epoch of the run that it is taken in."""

    @property
    def key(self) -> bytes:
        """The sample's key."""
        return self.shard.key(self.row)

    def generator(self, seed: int) -> np.random.Generator:
        """Return the random numbers of the sample in its epoch, wherever in a batch it comes."""
        return np.random.default_rng([seed, self.epoch, int.from_bytes(self.key, "big")])


Take = Callable[[int, Sample], None]
"""Takes a decoded sample, given its place in the batch; called by several threads."""


class TrainingSet:
    """Reads the samples of a run by their index in it; to be closed."""

    def __init__(
        self, job: StageJob, scratch: Path, *, seed: int, num_threads: int, samples: Selection
    ) -> None:
        """Open the index, no shard.

        `num_threads` decode. Samples are those that a stage passed on: of `download` with their captions, of
        `targets` with these. Held-out samples are left out. Raises `UserError` where none is left.
        """
        reader = job.recipe.reader
        self._window = reader.shuffle_shards
        self._num_threads = num_threads
        self._index = open_sample_index(job, samples, scratch)
        if not self._index.num_rows:
            raise UserError("training has no samples: the filter kept none; loosen filter.rules")
        self._sequence = SampleSequence(self._index, self._window, seed, self._index.identity)
        self._stack = ExitStack()
        name = blake2b(job.folder.encode(), digest_size=6).hexdigest()
        folder = self._stack.enter_context(shared_scratch_folder(f"reader-{name}"))
        self._cache = ShardCache(folder, int(reader.cache_gb * 1e9))
        self._files = ShardFiles(job, self._index, self._cache, samples)
        self._pool = ShardPool(self._files.open, self._cache, 2 * self._window)
        self._stack.callback(self._pool.close)
        self.damage = DamageLog(job.store(), self._index, ends_run=reader.on_damage == "raise")
        self._budget = PixelBudget(PIXELS_AT_ONCE)
        self._fitting_window: tuple[int, int] = (-1, -1)
        """Epoch and number of the window that is known to fit into the cache."""
        self._num_ahead = 0
        """Shards of the next window that fit beside this one."""

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return self._index.num_rows

    def close(self) -> None:
        """End the threads; the cache goes with the last process that uses it."""
        self._stack.close()

    def read(self, first: int, places: Sequence[int], take: Take) -> None:
        """Decode the samples `first + place` of the run, and give each to `take`; ends when all are taken.

        In the place of a sample that cannot be read stands one that can: the same for any number of ranks,
        and in a run that resumes. Raises `UserError` where none can be read.
        """
        samples = first + np.asarray(places, np.int64)
        self._open_ahead(int(samples[-1]))
        rows = self._sequence.rows(samples)
        tasks = list(zip(places, samples.tolist(), rows.tolist(), strict=True))
        decode = partial(self._take_readable, take)
        if self._num_threads == 1:
            for task in tasks:
                decode(task)
            return
        for _ in map_ahead(decode, tasks, self._num_threads, ahead=len(tasks)):
            pass

    def first(self, count: int) -> list[Sample]:
        """Decode some samples, the first of the first shard as in epoch 0; fewer where there are no more.

        May be called beside `read`, and opens no shard ahead.
        """
        found: list[Sample] = []

        def take(_: int, sample: Sample) -> None:
            found.append(sample)

        for row in range(min(len(self), _MOST_TRIED)):
            if len(found) == count:
                break
            self._took(take, 0, 0, row)
        return found

    def keys(self, first: int, places: Sequence[int]) -> list[str]:
        """Return the keys, hexadecimal, of the samples that `read` takes where all can be read."""
        rows = self._sequence.rows(first + np.asarray(places, np.int64))
        numbers, rows_in_shards = places_in_shards(self._index, rows)
        keys: list[str] = []
        for number, row in zip(numbers.tolist(), rows_in_shards.tolist(), strict=True):
            keys.append(self._pool.get(number).key(row).hex())
        return keys

    def _take_readable(self, take: Take, task: tuple[int, int, int]) -> None:
        place, sample, row = task
        if self._took(take, place, sample, row):
            return
        for substitute in self._sequence.substitutes(sample):
            if self._took(take, place, sample, substitute):
                return
        raise UserError(
            f"{self.damage.num_lost:,} of {len(self):,} training samples cannot be read, and none was found "
            "to take their places: see the lines above, and fetch the image shards again"
        )

    def _took(self, take: Take, place: int, sample: int, row: int) -> bool:
        """Decode one sample and give it to `take`; return whether it could be read."""
        number = int(self._index.shards_of(np.array([row]))[0])
        if self.damage.is_lost(row, number):
            return False
        row_in_shard = row - int(self._index.starts[number])
        try:
            shard = self._pool.get(number)
            data = shard.encoded(row_in_shard)
            with self._room_for(data):
                picture = decode_rgb(data)
                take(place, Sample(picture, shard, row_in_shard, self._sequence.epoch_of(sample)))
        except DamagedShardError as error:
            self.damage.lose_shard(number, error)
            return False
        except UnreadableImageError as error:
            key = self._pool.get(number).key(row_in_shard)
            self.damage.lose_image(row, number, key, str(error))
            return False
        return True

    def _room_for(self, data: bytes) -> AbstractContextManager[None]:
        """Reserve room for an image while the block decodes it; a single thread's is alone anyway."""
        if self._num_threads == 1:
            return nullcontext()
        width, height = peek_size(data)
        return self._budget.taken(width * height)

    def _open_ahead(self, sample: int) -> None:
        """Begin to open the shards of a sample's window, and of the next as this one is used up."""
        window = self._sequence.window_at(sample)
        self._require_room(window)
        num_ahead = min(self._num_ahead, math.ceil(2 * window.done * self._window))
        wanted = window.window.shards.tolist()
        if num_ahead:
            following = self._sequence.window_after(window).shards.tolist()
            wanted += [number for number in following[:num_ahead] if number not in wanted]
        self._pool.want(wanted)

    def _require_room(self, window: WindowOfRun) -> None:
        """Raise `UserError` unless the copies of a window's shards fit into the cache together."""
        this_window = (window.epoch, window.window.number)
        if this_window == self._fitting_window:
            return
        self._fitting_window = this_window
        self._num_ahead = self._window
        if self._files.are_local:
            return
        sizes = list(map_ahead(self._bytes_of, window.window.shards.tolist()))
        room = self._cache.max_bytes * _FILLED
        if sum(sizes) > room:
            raise UserError(
                f"reader.cache_gb={self._cache.max_bytes / 1e9:g} holds less than the {len(sizes)} shards "
                f"that are shuffled together, {sum(sizes) / 1e9:.3g} GB: raise it, or lower "
                f"reader.shuffle_shards={self._window}"
            )
        self._num_ahead = int((room - sum(sizes)) / max(*sizes, 1))

    def _bytes_of(self, number: int) -> int:
        try:
            return self._files.records(number).bytes
        except DamagedShardError:
            return 0  # whoever reads the shard says so
