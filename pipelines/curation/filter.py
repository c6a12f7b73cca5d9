"""Filter, second half: decides by the recipe's rules over the scores; runs no model, rewrites no shard."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.core.ledger import KEY_BYTES, LEDGER_SCHEMA, Status
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.curation.facts import FilterFacts
from dualtoken.pipelines.curation.rules import decide

DECISION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""`reason` is the rule that objected, empty where the sample is kept."""


class Worker:
    """Decides on a whole corpus at once: duplicates and quantiles reach across shards."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a decision file per shard."""
        scores_store = self._job.input("score")
        manifest = read_manifest(scores_store)
        assert manifest is not None, "a filter follows its scores"
        tables = {
            shard: read_input(scores_store, f"{shard}.parquet") for shard in sorted(manifest.units, key=int)
        }
        scores = pa.concat_tables(tables.values())
        reasons = decide(scores, self._job.recipe.filter.rules)
        start, kept = 0, {}
        for shard, table in tables.items():
            mine = reasons[start : start + len(table)]
            start += len(table)
            decision = pa.table(
                {"key": table["key"], "keep": [not reason for reason in mine], "reason": mine},
                schema=DECISION_SCHEMA,
            )
            pq.write_table(decision, scratch / f"{shard}.parquet", compression="zstd")
            kept[shard] = sum(not reason for reason in mine)
        assert len(scores) == unit.rows
        files = tuple(f"{shard}.parquet" for shard in tables)
        return UnitOutput(files, _ledger(scores["key"], reasons), FilterFacts(kept).to_json())


def _ledger(keys: pa.ChunkedArray, reasons: list[str]) -> pa.Table:
    """Build the ledger of a corpus by column: it may have millions of rows."""
    statuses = [(Status.REJECTED if reason else Status.OK).value for reason in reasons]
    return pa.table(
        {"key": keys, "status": statuses, "reason": reasons, "detail": [""] * len(reasons)},
        schema=LEDGER_SCHEMA,
    )
