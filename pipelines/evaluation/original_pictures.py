"""Reads held-out images from the image shards, as the tokenizer sees them, to be shown beside drawings."""

from collections.abc import Callable, Collection
from pathlib import Path

from PIL import Image

from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.samples import KeptSample, open_image_shard
from dualtoken.pipelines.inference.shard_decoder import Seen, ShardDecoder


def original_pictures(
    job: StageJob, keys: Collection[bytes], levels: Callable[[Image.Image], Seen], scratch: Path
) -> dict[bytes, Seen]:
    """Return held-out images by key, `levels` of what their tokens show; those damaged by now are missing.

    `scratch` holds copies of remote shards.
    """
    crops = job.recipe.pretokenize.crops

    def view(sample: KeptSample, picture: Image.Image) -> Seen:
        return levels(first_view(picture, crops, sample.key))

    originals: dict[bytes, Seen] = {}
    missing = set(keys)
    for corpus in job.recipe.heldout_corpora:
        folder = job.input("download", corpus)
        manifest = read_manifest(folder)
        assert manifest is not None, "an examination is planned on finished inputs"
        for unit in manifest.units:
            if not missing:
                return originals
            shard = open_image_shard(folder, unit, scratch / corpus)
            samples: list[KeptSample] = []
            for row, key in enumerate(shard.keys):
                if key in missing:
                    samples.append(KeptSample(row, key))
            missing -= {sample.key for sample in samples}
            for batch in ShardDecoder(shard, view).batches(samples, 1):
                originals[batch.samples[0].key] = batch.levels
    return originals
