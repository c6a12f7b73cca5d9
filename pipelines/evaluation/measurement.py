"""The record of a run's own evaluation: `measurement.json`. Imports no torch."""

from typing import Annotated

from pydantic import Field

from dualtoken.pipelines.core.receipts import Record
from dualtoken.pipelines.evaluation.summary import SetResult

MEASUREMENT = "measurement.json"


class Measurement(Record):
    """The results of a run's own evaluation; their `scores` are names of files beside it."""

    results: Annotated[tuple[SetResult, ...], Field(min_length=1)]
