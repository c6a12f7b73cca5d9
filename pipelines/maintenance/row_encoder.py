"""Encodes rows of a token shard again as they were encoded first: on such a device, in batches of that size.

A GPU may choose other kernels for another batch size, and round in other ways; a row's codes do not depend on
what else is in its batch. So a row stands at its own place in a batch of the first one's size, beside black
pictures where the other rows are of no interest. On a CPU codes do not depend on the batch size either.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualtoken.pipelines.core.receipts import LEDGERS
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.images.samples import KeptSample, open_image_shard
from dualtoken.pipelines.inference.image_stream import ImageStream, Undecodable
from dualtoken.pipelines.inference.networks import (
    Array,
    DeviceDescription,
    TokenizerRunner,
    describe_device,
    is_cpu,
    likest_device,
    open_tokenizer,
)
from dualtoken.pipelines.tokens.facts import STREAMS, TokenFacts


class EncodedRows(NamedTuple):
    """Codes of rows, encoded again."""

    codes: dict[str, Array]
    """(rows, codes of a row), by stream."""
    undecodable: dict[int, str]
    """Rows whose image cannot be decoded, and why; their codes mean nothing."""


class _Place(NamedTuple):
    """Place of a row among the pictures that were encoded at once."""

    batch: tuple[int, int]
    """Number of the batch of samples, and of the first picture of the part of it that was encoded at once."""
    num_pictures: int
    """Pictures encoded at once."""
    picture: int
    """Number of the row's picture among them."""


class RowEncoder:
    """Encodes the rows of a shard on the device that its receipt names, or on the likest one here."""

    def __init__(self, job: StageJob, facts: TokenFacts) -> None:
        self._job = job
        self._facts = facts
        device = likest_device(facts.device)
        self._tokenizer: TokenizerRunner = open_tokenizer(job, device)
        here = describe_device(device)
        self.is_same_device = facts.device is None or _rounding(facts) == _rounding(here)
        """Whether device and libraries are those of the first time, as far as the receipt tells."""
        self.devices = f"made on {facts.made_by}, encoded on {here.device}, torch {here.torch}"
        """Both devices, for people."""

    def serves(self, facts: TokenFacts) -> bool:
        """Tell whether another shard was made in the same way."""
        return _rounding(facts) == _rounding(self._facts) and facts.batch_size == self._facts.batch_size

    def encode(self, unit: str, keys: Mapping[int, bytes], scratch: Path) -> EncodedRows:
        """Encode rows of a unit, given with their keys, in order; of a sample, the row's crop alone."""
        config = self._job.recipe.pretokenize
        shard = open_image_shard(self._job.input("download"), unit, scratch)
        shard_rows = {key: row for row, key in enumerate(shard.keys)}
        samples = [KeptSample(shard_rows[key], key) for key in keys.values()]
        places = self._places(unit, keys)
        stream_of_images = ImageStream(config, self._tokenizer.network.transform, beside_gpu=False)
        numbers = iter(keys)
        undecodable: dict[int, str] = {}
        codes: dict[str, list[Array]] = {stream: [] for stream in STREAMS}
        waiting: list[tuple[_Place, Any]] = []
        for batch in stream_of_images.batches(shard, samples):
            levels = batch.levels.unflatten(0, (-1, config.num_variants))
            for found, variants in zip(batch.found, levels, strict=True):
                row = next(numbers)
                if isinstance(found, Undecodable):
                    undecodable[row] = found.detail
                if waiting and waiting[-1][0].batch != places[row].batch:
                    self._encode_batch(waiting, codes)
                    waiting = []
                waiting.append((places[row], variants[row % config.num_variants].clone()))
        self._encode_batch(waiting, codes)
        return EncodedRows({name: np.concatenate(parts) for name, parts in codes.items()}, undecodable)

    def _encode_batch(self, pictures: list[tuple[_Place, Any]], codes: dict[str, list[Array]]) -> None:
        """Encode pictures, levels (3, S, S), that were encoded at once, and add their codes, in order."""
        first_place, first_picture = pictures[0]
        levels = first_picture.new_zeros((first_place.num_pictures, *first_picture.shape))
        for place, picture in pictures:
            levels[place.picture] = picture
        encoded = self._tokenizer.encode_levels(levels)
        wanted = [place.picture for place, _ in pictures]
        for stream, ids in zip(STREAMS, encoded, strict=True):
            codes[stream].append(ids[wanted].reshape(len(wanted), -1))

    def _places(self, unit: str, keys: Mapping[int, bytes]) -> dict[int, _Place]:
        """Return where rows stood; of a CPU, which needs no more, as if there were these rows alone."""
        config = self._job.recipe.pretokenize
        reached = self._facts.batch_size or config.batch_size
        if is_cpu(self._facts.device):
            return _side_by_side(list(keys), reached)
        ledger = read_table(self._job.store(), f"{LEDGERS}/{unit}.parquet")
        samples = {key: number for number, key in enumerate(ledger["key"].to_pylist())}
        samples_per_batch = max(1, config.batch_size // config.num_variants)
        places: dict[int, _Place] = {}
        for row, key in keys.items():
            batch, sample = divmod(samples[key], samples_per_batch)
            in_batch = min(samples_per_batch, len(samples) - batch * samples_per_batch)
            part, picture = divmod(sample * config.num_variants + row % config.num_variants, reached)
            first = part * reached
            num_pictures = min(reached, in_batch * config.num_variants - first)
            places[row] = _Place((batch, first), num_pictures, picture)
        return places


def _side_by_side(rows: list[int], batch_size: int) -> dict[int, _Place]:
    places: dict[int, _Place] = {}
    for number, row in enumerate(rows):
        batch, picture = divmod(number, batch_size)
        num_pictures = min(batch_size, len(rows) - batch * batch_size)
        places[row] = _Place((batch, 0), num_pictures, picture)
    return places


def _rounding(facts: TokenFacts | DeviceDescription) -> tuple[str | None, ...]:
    """Return what decides last bits."""
    return (facts.device, facts.torch, facts.cudnn)
