"""A further stage, declared in a few lines: the mean brightness of each kept image, one unit per image shard.

Named in `DUALTOKEN_STAGES`, it is served by every command; `tests/end_to_end/test_new_stage.py` shows that.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.core.ledger import KEY_BYTES, OK_VERDICT, ledger_table
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import kept_samples, open_image_shard
from dualtoken.pipelines.runtime.stage import Stage, units_of
from dualtoken.pipelines.runtime.stages import declare

SCHEMA = pa.schema([pa.field("key", pa.binary(KEY_BYTES)), pa.field("brightness", pa.float32())])


class Worker:
    """Measures one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a row per kept sample, in the shard's order."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples = kept_samples(shard, read_input(self._job.input("filter"), f"{unit.id}.parquet"))
        keys = [sample.key for sample in samples]
        brightness = [float(np.asarray(decode_rgb(shard.image(sample.row))).mean()) for sample in samples]
        table = pa.table({"key": keys, "brightness": brightness}, schema=SCHEMA)
        pq.write_table(table, scratch / f"{unit.id}.parquet")
        return UnitOutput((f"{unit.id}.parquet",), ledger_table(keys, [OK_VERDICT] * len(keys)))


declare(
    Stage(
        name="brightness",
        version=1,
        folder="{corpus}/brightness",
        worker="tests.helpers.brightness_stage:Worker",
        reads=lambda _recipe, corpus: [("download", corpus), ("filter", corpus)],
        settings=lambda _recipe, _corpus: {},
        units=units_of("filter"),
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:parquet_rows",
        help="Measure each kept image's brightness.",
    )
)
