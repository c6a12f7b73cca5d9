"""Filter, second half: decides by the recipe's rules over the scores; runs no model, rewrites no shard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.filter_config import CaptionLength, ExactDuplicate, MaxAspect, MinSide, Similarity
from pipelines.ledger import KEY_BYTES, LEDGER_SCHEMA, Status
from pipelines.receipts import read_manifest
from pipelines.stage import StageJob, Unit, UnitOutput
from pipelines.tables import read_input

DECISION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""`reason` is the rule that objected, empty where the sample is kept."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Worker:
    """Decides on a whole corpus at once: duplicates and quantiles reach across shards."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a decision file per shard."""
        scores_store = self._job.input("score")
        manifest = read_manifest(scores_store)
        assert manifest is not None, "a filter follows its scores"
        tables = {shard: read_input(scores_store, f"{shard}.parquet") for shard in sorted(manifest.units, key=int)}
        scores = pa.concat_tables(tables.values())
        reasons = decide(scores, self._job.recipe.filter.rules)
        start, kept = 0, {}
        for shard, table in tables.items():
            mine = reasons[start : start + len(table)]
            start += len(table)
            decision = pa.table({"key": table["key"], "keep": [not reason for reason in mine], "reason": mine}, schema=DECISION_SCHEMA)
            pq.write_table(decision, scratch / f"{shard}.parquet", compression="zstd")
            kept[shard] = sum(not reason for reason in mine)
        assert len(scores) == unit.rows
        files = tuple(f"{shard}.parquet" for shard in tables)
        return UnitOutput(files, _ledger(scores["key"], reasons), {"rows_out_by_shard": kept})


def _ledger(keys: pa.ChunkedArray, reasons: list[str]) -> pa.Table:
    """Build the ledger of a corpus by column: it may have millions of rows."""
    statuses = [(Status.REJECTED if reason else Status.OK).value for reason in reasons]
    return pa.table({"key": keys, "status": statuses, "reason": reasons, "detail": [""] * len(reasons)}, schema=LEDGER_SCHEMA)


def decide(scores: pa.Table, rules: tuple[Any, ...]) -> list[str]:
    """Return, per row, the first rule that objects, or an empty string; rows are in source order."""
    reasons = np.full(len(scores), "", dtype=object)
    for rule in rules:
        open_rows = reasons == ""
        reasons[open_rows & _JUDGES[type(rule)](scores, rule, open_rows)] = rule.rule
    return list(reasons)


def _column(scores: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return scores[name].to_numpy()


def _too_small(scores: pa.Table, rule: MinSide, _: Mask) -> Mask:
    return np.minimum(_column(scores, "width"), _column(scores, "height")) < rule.pixels


def _too_long(scores: pa.Table, rule: MaxAspect, _: Mask) -> Mask:
    width, height = _column(scores, "width"), _column(scores, "height")
    return np.maximum(width, height) > rule.ratio * np.minimum(width, height)


def _caption_too_short(scores: pa.Table, rule: CaptionLength, _: Mask) -> Mask:
    few_words = _column(scores, "caption_words") < rule.min_words
    return few_words | (_column(scores, "caption_characters") < rule.min_characters)


def _seen_before(scores: pa.Table, _rule: ExactDuplicate, open_rows: Mask) -> Mask:
    """Mark all but the first of the open rows with the same pixels."""
    rows = np.flatnonzero(open_rows)
    _, first = np.unique(_column(scores, "pixel_hash")[rows].astype(str), return_index=True)
    seen = open_rows.copy()
    seen[rows[first]] = False
    return seen


def _unlike_its_caption(scores: pa.Table, rule: Similarity, open_rows: Mask) -> Mask:
    similarity = _column(scores, "similarity")
    rows = np.flatnonzero(open_rows)
    best_first = rows[np.argsort(-similarity[rows], kind="stable")]
    objects = similarity < rule.min_cosine
    objects[best_first[int(np.ceil(len(rows) * rule.keep_fraction)) :]] = True
    return objects


_JUDGES: dict[type, Callable[[pa.Table, Any, Mask], Mask]] = {
    MinSide: _too_small,
    MaxAspect: _too_long,
    CaptionLength: _caption_too_short,
    ExactDuplicate: _seen_before,
    Similarity: _unlike_its_caption,
}
