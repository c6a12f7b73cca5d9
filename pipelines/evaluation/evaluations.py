"""Finished evaluations on disk: their summaries, score tables, and what they were made from."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import SCORES, SUMMARY, EvaluationSummary, SetResult


class Evaluation(NamedTuple):
    """A summary with its score tables, by set and protocol."""

    summary: EvaluationSummary
    scores: dict[tuple[str, str], pa.Table]


def read_evaluation(place: str) -> Evaluation:
    """Read a finished evaluation from the folder of its summary, or from the file.

    Raises `UserError` where there is none, or its scores are gone.
    """
    folder = Store(place.removesuffix(f"/{SUMMARY}"))
    if not folder.exists(SUMMARY):
        raise UserError(f"{place} has no {SUMMARY}: name a folder that `dualtoken evaluate` ended with")
    summary = EvaluationSummary.read(folder, SUMMARY)
    scores: dict[tuple[str, str], pa.Table] = {}
    for result in summary.results:
        scores[result.set_name, result.protocol] = read_scores(result)
    return Evaluation(summary, scores)


def read_scores(result: SetResult) -> pa.Table:
    """Return the score table of a set by a protocol; raises `UserError` where it is gone."""
    folder = Store(result.scores)
    if not folder.exists(SCORES):
        raise UserError(f"{result.scores} has no {SCORES}: evaluate once more")
    with scratch_folder() as scratch:
        return pq.read_table(folder.local_copy(SCORES, Path(scratch)))


def made_from(result: SetResult) -> StageRecord:
    """Return the record of what a result was made from: model, teacher and set, by name of input."""
    return StageRecord.read(Store(result.scores), STAGE_FILE)
