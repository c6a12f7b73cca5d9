"""Targets stage: the teacher's outputs for each kept sample, computed once for every later epoch.

One Arrow IPC file per image shard; its rows are the kept samples in the shard's order, but for those whose
image was damaged since it was scored.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.pipelines.config.teacher import StoredTargets
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.images.samples import KeptSample, kept_samples, open_image_shard
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchTeacher
from dualtoken.pipelines.inference.networks import (
    describe_device,
    open_teacher,
    prepare_process,
    threads_beside,
)
from dualtoken.pipelines.inference.shard_decoder import ShardDecoder
from dualtoken.pipelines.training.stored_targets import MODE, dense_fields, encode_dense, require_cosine


class Worker:
    """Runs the teacher over one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        prepare_process(threads=1)
        self._teacher = open_teacher(job, job.recipe.targets.precision)
        self._adaptive = AdaptiveBatchTeacher(
            self._teacher, job.recipe.targets.batch_size, "targets.batch_size"
        )

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `<shard>.arrow`: embeddings, similarity, pooled output and, by recipe, dense features.

        Raises `UserError` where the recipe's mode gives dense features back too far from what they were.
        """
        recipe = self._job.recipe
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples = kept_samples(shard, read_input(self._job.input("filter"), f"{unit.id}.parquet"))
        stored = recipe.targets.stored
        assert stored is not None, "nothing is stored, and no unit planned"
        schema = target_schema(self._teacher.embedding_width, recipe.tokenizer, stored)
        least_cosine = 1.0
        self._adaptive.begin()
        decoder = ShardDecoder(shard, self._view, threads=threads_beside(self._teacher.device))
        file = f"{unit.id}.arrow"
        with pa.OSFile(str(scratch / file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in decoder.batches(samples, recipe.targets.batch_size):
                captions = [shard.captions[sample.row] for sample in batch.samples]
                outputs = self._adaptive.targets(batch.levels, captions, recipe.tokenizer.semantic_block)
                dense = encode_dense(outputs.pop("dense"), stored)
                require_cosine(dense.least_cosine, stored)
                least_cosine = min(least_cosine, dense.least_cosine)
                outputs |= dense.columns
                keys = pa.array([sample.key for sample in batch.samples], pa.binary(KEY_BYTES))
                values = [_column(outputs[name], schema.field(name).type) for name in schema.names[1:]]
                writer.write_batch(pa.RecordBatch.from_arrays([keys, *values], schema=schema))
        facts = {
            **describe_device(self._teacher.device).present(),
            "batch_size": self._adaptive.batch_size,
            "least_cosine": round(least_cosine, 6),
        }
        return UnitOutput((file,), decoder.ledger(samples), facts)

    def _view(self, _: KeptSample, picture: Image.Image) -> UInt8[Tensor, "1 3 S S"]:
        return self._teacher.levels([picture])


def target_schema(embedding_width: int, tokenizer: TokenizerConfig, stored: StoredTargets) -> pa.Schema:
    """Return the columns of a target file, whose metadata names what it stores."""
    embedding = _vector(pa.float32(), embedding_width)
    width = tokenizer.tower.width
    fields = [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("image_embedding", embedding, nullable=False),
        pa.field("text_embedding", embedding, nullable=False),
        pa.field("pooled", _vector(pa.float32(), width), nullable=False),
        *dense_fields(stored, tokenizer.grid_size**2, width),
    ]
    return pa.schema(fields, {MODE: stored})


def _vector(kind: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), width)


def _column(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    item = kind.value_type.to_pandas_dtype()
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(item).reshape(-1)), type=kind)
