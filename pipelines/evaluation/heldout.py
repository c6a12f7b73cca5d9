"""The held-out samples that a tokenizer is evaluated on, with the images and codes of each.

B samples a batch, S and T pixels a side for the tokenizer and the teacher.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.pipelines.config.crops import CenterCrop
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.samples import (
    KeptSample,
    are_scenes,
    is_heldout,
    open_image_shard,
    scene_descriptions,
)
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.networks import TeacherRunner, TokenizerRunner
from dualtoken.pipelines.inference.shard_decoder import DecodedBatch, ShardDecoder
from dualtoken.pipelines.tokens.shards import Ids, codes_of, data_path, read_data_shard


class HeldoutBatch(NamedTuple):
    """Held-out samples with their stored codes."""

    keys: list[bytes]
    captions: list[str]
    levels: UInt8[Tensor, "B 3 S S"]
    """Pictures as the tokenizer sees them."""
    teacher_levels: UInt8[Tensor, "B 3 T T"]
    """Pictures as the teacher sees them."""
    semantic: Ids
    """(B, codes of a row)"""
    pixel: Ids
    """(B, codes of a row)"""
    descriptions: list[dict[str, Any]]
    """Contents of each scene; empty for images that nobody described."""
    are_whole_scenes: bool
    """Whether every picture shows the whole of a scene that is described."""


class HeldoutSamples:
    """The held-out samples that reached the token shards, decoded one at a time."""

    def __init__(self, job: StageJob, tokenizer: TokenizerRunner, teacher: TeacherRunner) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._teacher = teacher
        self._teacher_levels: dict[bytes, UInt8[Tensor, "1 3 T T"]] = {}
        """Pictures of the batch that is being decoded, by key."""
        self.undecodable: list[bytes] = []
        """Keys of the samples whose image was damaged since it was encoded."""

    def batches(self, scratch: Path, size: int) -> Iterator[HeldoutBatch]:
        """Yield the samples that can be decoded, in order; `scratch` holds copies of remote shards."""
        for corpus in self._job.recipe.heldout_corpora:
            manifest = read_manifest(self._job.input("pretokenize", corpus))
            assert manifest is not None, "a report is planned on finished inputs"
            for unit in manifest.units:
                yield from self._batches_of_unit(corpus, unit, scratch / corpus, size)

    def _batches_of_unit(self, corpus: str, unit: str, scratch: Path, size: int) -> Iterator[HeldoutBatch]:
        tokens = self._job.input("pretokenize", corpus)
        table = read_data_shard(tokens.local_copy(data_path(unit), scratch))
        shard = open_image_shard(self._job.input("download", corpus), unit, scratch)
        token_rows = self._token_rows(corpus, table["key"].to_pylist())
        image_rows = {key: row for row, key in enumerate(shard.keys)}
        decoder = ShardDecoder(shard, self._view)
        samples = [KeptSample(image_rows[key], key) for key in token_rows]
        described = are_scenes(self._job.recipe, corpus)
        for batch in decoder.batches(samples, size):
            rows = [token_rows[sample.key] for sample in batch.samples]
            part = table.take(pa.array(rows, pa.int64()))
            yield self._joined(batch, part, shard, described=described)
        self.undecodable += decoder.faults

    def _token_rows(self, corpus: str, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return the rows of held-out samples in a token shard, by key: the first variant of each."""
        first_variants = range(0, len(keys), self._job.recipe.pretokenize.num_variants)
        return {keys[row]: row for row in first_variants if is_heldout(self._job.recipe, corpus, keys[row])}

    def _view(self, sample: KeptSample, picture: Image.Image) -> UInt8[Tensor, "1 3 S S"]:
        view = first_view(picture, self._job.recipe.pretokenize.crops, sample.key)
        self._teacher_levels[sample.key] = self._teacher.levels([view])
        return self._tokenizer.network.transform.levels([view])

    def _joined(
        self, batch: DecodedBatch, codes: pa.Table, shard: ImageShard, *, described: bool
    ) -> HeldoutBatch:
        """Join decoded samples with their codes, in the same order, and with what the shard says of them."""
        descriptions: list[dict[str, Any]] = []
        if described:
            descriptions = scene_descriptions(shard, [sample.row for sample in batch.samples])
        keys = [sample.key for sample in batch.samples]
        return HeldoutBatch(
            keys=keys,
            captions=[shard.captions[sample.row] for sample in batch.samples],
            levels=batch.levels,
            teacher_levels=torch.cat([self._teacher_levels.pop(key) for key in keys]),
            semantic=codes_of(codes, "semantic"),
            pixel=codes_of(codes, "pixel"),
            descriptions=descriptions,
            are_whole_scenes=described and isinstance(self._job.recipe.pretokenize.crops[0], CenterCrop),
        )
