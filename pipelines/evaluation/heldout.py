"""The held-out samples that a run's tokens are evaluated on: their pictures with the codes as stored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.config.corpora import ScenesSource
from dualtoken.pipelines.config.crops import CenterCrop
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.evaluation.evaluated_batch import EvaluatedSample
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import batched, is_heldout, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.tokens.shards import Ids, codes_of, data_path, read_data_shard


class HeldoutPart(NamedTuple):
    """Some held-out samples with their stored codes."""

    samples: list[EvaluatedSample]
    semantic: Ids
    """(samples, codes of a row)"""
    pixel: Ids
    """(samples, codes of a row)"""
    are_whole_scenes: bool
    """Whether every picture shows the whole of a scene that is described."""


class HeldoutSamples:
    """The held-out samples that reached the token shards."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self.undecodable: list[bytes] = []
        """Keys of the samples whose image was damaged since it was encoded."""

    def parts(self, scratch: Path, size: int) -> Iterator[HeldoutPart]:
        """Yield the samples that can be decoded, in order; `scratch` holds copies of remote shards."""
        for corpus in self._job.recipe.heldout_corpora:
            manifest = read_manifest(self._job.input("pretokenize", corpus))
            assert manifest is not None, "a report is planned on finished inputs"
            for unit in manifest.units:
                yield from self._parts_of_unit(corpus, unit, scratch / corpus, size)

    def _parts_of_unit(self, corpus: str, unit: str, scratch: Path, size: int) -> Iterator[HeldoutPart]:
        tokens = self._job.input("pretokenize", corpus)
        table = read_data_shard(tokens.local_copy(data_path(unit), scratch))
        shard = open_image_shard(self._job.input("download", corpus), unit, scratch)
        image_rows = {key: row for row, key in enumerate(shard.keys)}
        are_scenes = isinstance(self._job.recipe.corpora[corpus].source, ScenesSource)
        is_whole = isinstance(self._job.recipe.pretokenize.crops[0], CenterCrop)
        token_rows = self._token_rows(corpus, table["key"].to_pylist())
        for keys in batched(list(token_rows), size):
            samples: list[EvaluatedSample] = []
            for key in keys:
                sample = self._sample(shard, image_rows[key], key, are_scenes=are_scenes)
                if sample is not None:
                    samples.append(sample)
            if not samples:
                continue
            codes = table.take(pa.array([token_rows[sample.key] for sample in samples], pa.int64()))
            yield HeldoutPart(
                samples=samples,
                semantic=codes_of(codes, "semantic"),
                pixel=codes_of(codes, "pixel"),
                are_whole_scenes=are_scenes and is_whole,
            )

    def _token_rows(self, corpus: str, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return the rows of held-out samples in a token shard, by key: the first variant of each."""
        first_variants = range(0, len(keys), self._job.recipe.pretokenize.num_variants)
        return {keys[row]: row for row in first_variants if is_heldout(self._job.recipe, corpus, keys[row])}

    def _sample(self, shard: ImageShard, row: int, key: bytes, *, are_scenes: bool) -> EvaluatedSample | None:
        """Return a sample as the tokenizer was shown it; None where its image gives no picture."""
        try:
            picture = decode_rgb(shard.image(row))
        except UnreadableImageError:
            self.undecodable.append(key)
            return None
        return EvaluatedSample(
            key=key,
            picture=first_view(picture, self._job.recipe.pretokenize.crops, key),
            captions=[shard.captions[row]],
            label=None,
            cluster=None,
            description=shard.metadata["description"][row].as_py() if are_scenes else "",
        )
