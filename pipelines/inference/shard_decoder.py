"""Decodes samples of an image shard into batches as a network sees them, with one decoded picture at a time.

Shapes: B samples a batch, S pixels a side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.core.ledger import OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.images.decoding import UNDECODABLE, decode_rgb
from dualtoken.pipelines.images.samples import KeptSample
from dualtoken.pipelines.images.shards import ImageShard

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

    def __init__(self, shard: ImageShard, view: View) -> None:
        self._shard = shard
        self._view = view
        self.faults: dict[bytes, str] = {}
        """Why samples gave no picture, by key."""

    def batches(self, samples: Iterable[KeptSample], size: int) -> Iterator[DecodedBatch]:
        """Yield the samples that can be decoded, in order, `size` at a time."""
        decoded: list[KeptSample] = []
        levels: list[Seen] = []
        for sample in samples:
            try:
                picture = decode_rgb(self._shard.image(sample.row))
            except UnreadableImageError as error:
                self.faults[sample.key] = str(error)
                continue
            decoded.append(sample)
            levels.append(self._view(sample, picture))
            if len(decoded) == size:
                yield DecodedBatch(decoded, torch.cat(levels))
                decoded, levels = [], []
        if decoded:
            yield DecodedBatch(decoded, torch.cat(levels))

    def ledger(self, samples: Sequence[KeptSample]) -> pa.Table:
        """Return the ledger of samples, once all their batches were taken."""
        verdicts: list[Verdict] = []
        for sample in samples:
            if sample.key in self.faults:
                verdicts.append(Verdict(Status.FAILED, UNDECODABLE, self.faults[sample.key]))
            else:
                verdicts.append(OK_VERDICT)
        return ledger_table([sample.key for sample in samples], verdicts)
