"""Pretokenize: the kept samples of an image shard to one token shard."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.finish import tokenizer_identity
from pipelines.image_shards import ImageShard
from pipelines.ledger import Status, ledger_table
from pipelines.models import open_tokenizer
from pipelines.samples import KeptRow, batches, decode, kept_rows, open_shard, read_table
from pipelines.stage import StageJob, Unit, UnitOutput
from pipelines.token_shards import Ids, token_schema, write_data_shard

SCORES = {"similarity": "teacher_similarity"}
"""Scores carried along, and the names that they get: a source may have a column of the plain name."""
LEFT_OUT = {"key", "sample_key", "status", "reason", "error_message", "width", "height"}
"""Of an image shard's columns: the sample key stands first, every kept sample succeeded, and stored sizes are the recipe's."""


class Worker:
    """Encodes one image shard per unit; only the layers that codes need are run."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._tokenizer = open_tokenizer(job)
        self._schema = token_schema(self._tokenizer.config, tokenizer_identity(job.input("train")))

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `data/<shard>.arrow` and `meta/<shard>.parquet`."""
        shard = open_shard(self._job.input("download"), unit.id, scratch)
        rows = kept_rows(shard, read_table(self._job.input("filter"), f"{unit.id}.parquet"))
        semantic, pixel = self._encode(shard, rows)
        keys = [row.key for row in rows]
        write_data_shard(scratch / f"data/{unit.id}.arrow", self._schema, keys, semantic, pixel)
        (scratch / "meta").mkdir()
        scores = read_table(self._job.input("score"), f"{unit.id}.parquet", ["key", *SCORES])
        pq.write_table(_meta(shard, rows, scores), scratch / f"meta/{unit.id}.parquet", compression="zstd")
        config = self._tokenizer.config
        facts = {
            "semantic_usage": _usage(semantic, config.semantic.depth, config.semantic.num_codes),
            "pixel_usage": _usage(pixel, config.pixel.depth, config.pixel.num_codes),
        }
        files = (f"data/{unit.id}.arrow", f"meta/{unit.id}.parquet")
        return UnitOutput(files, ledger_table(keys, [(Status.OK, "", "")] * len(keys)), facts)

    def _encode(self, shard: ImageShard, rows: list[KeptRow]) -> tuple[Ids, Ids]:
        config = self._tokenizer.config
        width = config.grid_size**2 * config.pixel.depth
        semantic, pixel = np.zeros((len(rows), width), np.uint16), np.zeros((len(rows), width), np.uint16)
        first = 0
        for batch in batches(rows, self._job.recipe.pretokenize.batch_size):
            codes = self._tokenizer.encode([decode(shard.image(row.row)) for row in batch])
            span = slice(first, first + len(batch))
            semantic[span], pixel[span] = (ids.reshape(len(batch), width) for ids in codes)
            first += len(batch)
        return semantic, pixel


def _meta(shard: ImageShard, rows: list[KeptRow], scores: pa.Table) -> pa.Table:
    """Join a shard's own columns and the scores, in the order of the rows."""
    places = pa.array([row.row for row in rows], pa.int64())
    own = shard.metadata.take(places)
    by_key = {key: place for place, key in enumerate(scores["key"].to_pylist())}
    scored = scores.take(pa.array([by_key[row.key] for row in rows], pa.int64()))
    carried = {name: own[name] for name in own.column_names if name not in LEFT_OUT}
    return pa.table({"key": scored["key"], **carried, **{ours: scored[name] for name, ours in SCORES.items()}})


def _usage(ids: Ids, depth: int, num_codes: int) -> list[float]:
    """Return, per depth, the share of codes that occur."""
    by_depth = ids.reshape(-1, depth)
    return [round(len(np.unique(by_depth[:, level])) / num_codes, 6) for level in range(depth)]
