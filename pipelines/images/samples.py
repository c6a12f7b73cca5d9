"""Reads samples for the stages after the filter: an image shard, and the rows of it that were kept."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import HeldoutFraction, ScenesSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.core.tables import finished_files
from dualtoken.pipelines.images.shards import ImageShard

Item = TypeVar("Item")


def open_image_shard(store: Store, shard: str, scratch: Path) -> ImageShard:
    """Open an image shard, copied to scratch unless it is local; raises `UserError` where it is gone."""
    tar = f"{shard}.tar"
    parquet = f"{shard}.parquet"
    with finished_files(store, tar, parquet):
        return ImageShard(store.local_copy(tar, scratch), store.local_copy(parquet, scratch))


def is_heldout(recipe: Recipe, corpus: str, key: bytes) -> bool:
    """Tell whether a sample is for evaluation and never for training."""
    if isinstance(recipe.heldout, HeldoutFraction):
        return key_fraction(key) < recipe.heldout.fraction
    return corpus == recipe.heldout.corpus


def are_scenes(recipe: Recipe, corpus: str) -> bool:
    """Tell whether every picture of a corpus is a generated scene, and described."""
    return isinstance(recipe.corpora[corpus].source, ScenesSource)


def scene_descriptions(shard: ImageShard, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the scenes of some rows show, as `scene_generator.describe` gives it."""
    described = shard.metadata["description"].take(pa.array(rows, pa.int64()))
    return [json.loads(description) for description in described.to_pylist()]


class KeptSample(NamedTuple):
    """One sample that the filter kept."""

    row: int
    """Row of the image shard."""
    key: bytes


def kept_samples(shard: ImageShard, decision: pa.Table) -> list[KeptSample]:
    """Match a decision's kept keys to the rows of an image shard, in the shard's order."""
    kept_keys = set(decision.filter(decision["keep"])["key"].to_pylist())
    samples = [KeptSample(row, key) for row, key in enumerate(shard.keys) if key in kept_keys]
    assert len(samples) == len(kept_keys), "the decision names samples that the shard lacks"
    return samples


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a list into pieces of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
