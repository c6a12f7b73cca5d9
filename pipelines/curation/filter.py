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
"""Columns of a decision file, a row per scored sample; `reason` is the rule that rejects it, or empty."""


class Worker:
    """Decides on a whole corpus at once: duplicates and quantiles reach across shards."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a decision file per shard."""
        scores_by_shard = self._read_scores()
        scores = pa.concat_tables(scores_by_shard.values())
        assert len(scores) == unit.rows
        reasons = decide(scores, self._job.recipe.filter.rules)
        files: list[str] = []
        kept: dict[str, int] = {}
        first = 0
        for shard, table in scores_by_shard.items():
            shard_reasons = reasons[first : first + len(table)]
            first += len(table)
            files.append(f"{shard}.parquet")
            _write_decision(scratch / files[-1], table["key"], shard_reasons)
            kept[shard] = shard_reasons.count("")
        return UnitOutput(tuple(files), _ledger(scores["key"], reasons), FilterFacts(kept).to_json())

    def _read_scores(self) -> dict[str, pa.Table]:
        """Return each shard's scores, in the order of the source."""
        store = self._job.input("score")
        manifest = read_manifest(store)
        assert manifest is not None, "a filter follows its scores"
        scores: dict[str, pa.Table] = {}
        for shard in sorted(manifest.units, key=int):
            scores[shard] = read_input(store, f"{shard}.parquet")
        return scores


def _write_decision(path: Path, keys: pa.ChunkedArray, reasons: list[str]) -> None:
    keep = [reason == "" for reason in reasons]
    decision = pa.table({"key": keys, "keep": keep, "reason": reasons}, schema=DECISION_SCHEMA)
    pq.write_table(decision, path, compression="zstd")


def _ledger(keys: pa.ChunkedArray, reasons: list[str]) -> pa.Table:
    """Build the ledger of a corpus by column: it may have millions of rows."""
    statuses = [(Status.REJECTED if reason else Status.OK).value for reason in reasons]
    details = [""] * len(reasons)
    return pa.table(
        {"key": keys, "status": statuses, "reason": reasons, "detail": details}, schema=LEDGER_SCHEMA
    )
