"""Targets stage: the teacher's outputs for each kept sample, computed once for every later epoch.

One Arrow IPC file per image shard; its rows are the kept samples in the shard's order, but for those whose
image was damaged since it was scored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.images.samples import KeptSample, kept_samples, open_image_shard
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatch
from dualtoken.pipelines.inference.networks import Array, describe_device, open_teacher, prepare_process
from dualtoken.pipelines.inference.shard_decoder import ShardDecoder


class Worker:
    """Runs the teacher over one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        prepare_process(threads=1)
        self._teacher = open_teacher(job)
        self._batch = AdaptiveBatch(job.recipe.targets.batch_size, "targets.batch_size")

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `<shard>.arrow`: embeddings, similarity, pooled output and, by recipe, dense features."""
        recipe = self._job.recipe
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples = kept_samples(shard, read_input(self._job.input("filter"), f"{unit.id}.parquet"))
        schema = target_schema(self._teacher.embedding_width, recipe.tokenizer, dense=recipe.targets.dense)
        self._batch.begin()
        decoder = ShardDecoder(shard, self._view)
        file = f"{unit.id}.arrow"
        with pa.OSFile(str(scratch / file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in decoder.batches(samples, recipe.targets.batch_size):
                captions = [shard.captions[sample.row] for sample in batch.samples]
                outputs = self._outputs(batch.levels, captions)
                keys = pa.array([sample.key for sample in batch.samples], pa.binary(KEY_BYTES))
                values = [_column(outputs[name], schema.field(name).type) for name in schema.names[1:]]
                writer.write_batch(pa.RecordBatch.from_arrays([keys, *values], schema=schema))
        facts = {**describe_device(self._teacher.device), "batch_size": self._batch.size}
        return UnitOutput((file,), decoder.ledger(samples), facts)

    def _outputs(self, levels: UInt8[Tensor, "B 3 S S"], captions: Sequence[str]) -> dict[str, Array]:
        """Return the columns of a batch; where memory does not hold it, from smaller ones."""
        block = self._job.recipe.tokenizer.semantic_block

        def targets(part: slice) -> dict[str, Array]:
            return self._teacher.targets(levels[part], captions[part], block)

        parts = self._batch.run(len(captions), targets)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _view(self, _: KeptSample, picture: Image.Image) -> UInt8[Tensor, "1 3 S S"]:
        return self._teacher.levels([picture])


def target_schema(embedding_width: int, tokenizer: Any, *, dense: bool) -> pa.Schema:  # noqa: ANN401
    """Return the columns of a target file; `tokenizer` is a `TokenizerConfig`."""
    embedding = _vector(pa.float32(), embedding_width)
    fields = [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("image_embedding", embedding, nullable=False),
        pa.field("text_embedding", embedding, nullable=False),
        pa.field("pooled", _vector(pa.float32(), tokenizer.tower.width), nullable=False),
    ]
    if dense:
        num_values = tokenizer.grid_size**2 * tokenizer.tower.width
        fields.append(pa.field("dense", _vector(pa.float16(), num_values), nullable=False))
    return pa.schema(fields)


def _vector(kind: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), width)


def _column(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    item = kind.value_type.to_pandas_dtype()
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(item).reshape(-1)), type=kind)
