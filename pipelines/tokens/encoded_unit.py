"""Sums of a unit of pretokenize while it is encoded: fate of each sample, code usage, images to audit.

N images of a batch: the variants of each sample side by side.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.metrics.arrays import Levels, psnr
from dualtoken.pipelines.core.ledger import OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.images.crops import Crop
from dualtoken.pipelines.images.decoding import UNDECODABLE
from dualtoken.pipelines.images.samples import KeptSample
from dualtoken.pipelines.inference.image_stream import ImageBatch, Undecodable
from dualtoken.pipelines.inference.networks import TokenizerRunner
from dualtoken.pipelines.tokens.audit import CodeCounter
from dualtoken.pipelines.tokens.facts import STREAMS
from dualtoken.pipelines.tokens.shards import Ids, TokenShardWriter, codes_of, read_data_shard


class EncodedUnit:
    """Adds up a unit's batches: what became of each sample, how codes are used, and the images to audit."""

    def __init__(self, config: TokenizerConfig, audited: frozenset[int]) -> None:
        """Begin a unit; `audited` are the images to look at again, numbered in the order of encoding."""
        self.found: list[tuple[Crop, ...] | Undecodable] = []
        """Crops of every sample, or why there are none."""
        self.samples: list[KeptSample] = []
        """Samples that could be decoded."""
        self.crops: list[tuple[Crop, ...]] = []
        """Crops of those samples."""
        self.num_rows = 0
        """Rows of the token shard."""
        self.counters = {
            "semantic": CodeCounter(config.semantic.depth, config.semantic.num_codes),
            "pixel": CodeCounter(config.pixel.depth, config.pixel.num_codes),
        }
        self.images = AuditedImages()
        self._audited = audited
        self._num_images = 0
        """Images encoded, those in place of undecodable ones included."""

    def write(self, writer: TokenShardWriter, batch: ImageBatch, codes: Sequence[Ids]) -> None:
        """Count a batch, and write its rows; `codes` are (N, ...) by stream."""
        variants = len(batch.levels) // len(batch.rows)
        decoded = [not isinstance(found, Undecodable) for found in batch.found]
        # The images that become rows: an undecodable sample was encoded too, so that no other one's place
        # changes.
        places = np.flatnonzero(np.repeat(decoded, variants))
        streams = [ids.reshape(len(ids), -1) for ids in codes]
        if not all(decoded):
            streams = [ids[places] for ids in streams]
        for stream, ids in zip(STREAMS, streams, strict=True):
            self.counters[stream].add(ids)
        self._keep_audited(batch, places)
        semantic, pixel = streams
        writer.append(self._add_samples(batch, variants), semantic, pixel)

    def ledger(self, samples: Sequence[KeptSample]) -> pa.Table:
        """Return the ledger of the unit's samples, once all are encoded."""
        verdicts: list[Verdict] = []
        for found in self.found:
            if isinstance(found, Undecodable):
                verdicts.append(Verdict(Status.FAILED, UNDECODABLE, found.detail))
            else:
                verdicts.append(OK_VERDICT)
        return ledger_table([sample.key for sample in samples], verdicts)

    def _keep_audited(self, batch: ImageBatch, places: np.ndarray) -> None:
        """Keep the images to audit; `places` are those of the images in the batch that become rows."""
        for row, place in enumerate(places.tolist(), start=self.num_rows):
            if self._num_images + place in self._audited:
                self.images.keep(row, batch.levels[place].numpy().copy())
        self._num_images += len(batch.levels)
        self.num_rows += len(places)

    def _add_samples(self, batch: ImageBatch, variants: int) -> list[bytes]:
        """Note what became of a batch's samples; return the keys of its rows."""
        keys: list[bytes] = []
        for sample, found in zip(batch.rows, batch.found, strict=True):
            self.found.append(found)
            if not isinstance(found, Undecodable):
                self.samples.append(sample)
                self.crops.append(found)
                keys += [sample.key] * variants
        return keys


class AuditedImages:
    """Images of the rows to audit, kept until their codes are on disk."""

    def __init__(self) -> None:
        self._levels: dict[int, Levels] = {}
        """Levels of the image as the encoder got it, by row of the shard."""

    def keep(self, row: int, levels: Levels) -> None:
        """Keep the image of a row."""
        self._levels[row] = levels

    def psnr(self, path: Path, tokenizer: TokenizerRunner) -> dict[int, float]:
        """Decode the rows from the codes that the shard at `path` holds; return the PSNR by row, dB."""
        if not self._levels:
            return {}
        config = tokenizer.config
        shape = (1, config.grid_size, config.grid_size, config.pixel.depth)
        rows = pa.array(list(self._levels), pa.int64())
        codes = codes_of(read_data_shard(path).select(["pixel"]).take(rows), "pixel")
        ratios: dict[int, float] = {}
        # One by one: the decoder takes more memory an image than encoding does.
        for ids, (row, levels) in zip(codes, self._levels.items(), strict=True):
            decoded = tokenizer.decode(ids.reshape(shape))[0].cpu().numpy()
            ratios[row] = round(psnr(decoded, levels), 2)
        return ratios
