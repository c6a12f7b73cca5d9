"""Decodes samples of an image shard into batches as a network sees them.

One picture is decoded at a time; beside a GPU, several are, by threads that run ahead, in bounded memory.

Shapes: B samples a batch, S pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.core.ledger import OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.images.decoding import UNDECODABLE, decode_rgb, peek_size
from dualtoken.pipelines.images.samples import KeptSample
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.image_stream import BATCHES_AHEAD, PIXELS_AT_ONCE, PixelBudget

Seen = UInt8[Tensor, "1 3 S S"]
"""A picture as a network sees it."""
View = Callable[[KeptSample, Image.Image], Seen]
"""What a network sees of a sample's picture."""


class DecodedBatch(NamedTuple):
    """Samples that could be decoded, as a network sees them."""

    samples: list[KeptSample]
    levels: UInt8[Tensor, "B 3 S S"]


class ShardDecoder:
    """Decodes a shard's samples, and notes those whose image gives no picture."""

    def __init__(self, shard: ImageShard, view: View, *, threads: int = 0) -> None:
        """Read a shard; `threads` decode up to two batches ahead, 0: in the caller's, in turn."""
        self._shard = shard
        self._view = view
        self._threads = threads
        self._budget = PixelBudget(PIXELS_AT_ONCE)
        self.faults: dict[bytes, str] = {}
        """Why samples gave no picture, by key."""

    def batches(self, samples: Sequence[KeptSample], size: int) -> Iterator[DecodedBatch]:
        """Yield the samples that can be decoded, in order, `size` at a time."""
        decoded: list[KeptSample] = []
        levels: list[Seen] = []
        outcomes = map(self._decode, samples)
        if self._threads:
            outcomes = map_ahead(self._decode, samples, self._threads, ahead=BATCHES_AHEAD * size)
        for sample, seen in zip(samples, outcomes, strict=True):
            if seen is None:
                continue
            decoded.append(sample)
            levels.append(seen)
            if len(decoded) == size:
                yield DecodedBatch(decoded, torch.cat(levels))
                decoded, levels = [], []
        if decoded:
            yield DecodedBatch(decoded, torch.cat(levels))

    def _decode(self, sample: KeptSample) -> Seen | None:
        """Return what the network sees of a sample; None where its image gives no picture, which is noted."""
        data = self._shard.image(sample.row)
        width, height = peek_size(data)
        with self._budget.taken(width * height):
            try:
                picture = decode_rgb(data)
            except UnreadableImageError as error:
                self.faults[sample.key] = str(error)
                return None
            return self._view(sample, picture)

    def ledger(self, samples: Sequence[KeptSample]) -> pa.Table:
        """Return the ledger of samples, once all their batches were taken."""
        verdicts: list[Verdict] = []
        for sample in samples:
            if sample.key in self.faults:
                verdicts.append(Verdict(Status.FAILED, UNDECODABLE, self.faults[sample.key]))
            else:
                verdicts.append(OK_VERDICT)
        return ledger_table([sample.key for sample in samples], verdicts)
