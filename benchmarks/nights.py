"""A year of nights: how long `nightly run` and `nightly check` take beside the measurements.

Run: python -m benchmarks.nights [--nights 365] [--metrics 8]. Every night of a year is measured (a made-up
model with normal noise), judged and written to a local folder, on a clock that jumps from night to night.
Then the history is read and looked at as a new process does it.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.evaluation.summary import (
    Direction,
    Environment,
    EvaluationSummary,
    MetricValue,
    SetResult,
    Subject,
)
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.contracts import Chart, Nightly, Point, SubjectRequest
from dualtoken.pipelines.nightly.records import SeriesState
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import night_states
from dualtoken.pipelines.nightly.wiring import CHART, open_chart

FIRST = date(2026, 1, 1)


class _Judged(NamedTuple):
    """A night of the rule that is used where there is no chart."""

    state: SeriesState
    residual: float | None
    reason: str


def _no_rule(
    points: Sequence[Point],
    direction: Direction,  # noqa: ARG001  (as the chart has it)
    margin: float,  # noqa: ARG001
    rules: object,  # noqa: ARG001
    baseline: float | None = None,  # noqa: ARG001
    acknowledged: Collection[str] = (),  # noqa: ARG001
) -> list[_Judged]:
    return [_Judged("ok", 0.0, "")] * len(points)


class _Measure:
    """Draws each metric's value of a night; the canary has always the same."""

    def __init__(self, num_metrics: int) -> None:
        self._num_metrics = num_metrics

    def __call__(self, subject: SubjectRequest, folder: Store, night: str, attempt: str) -> EvaluationSummary:
        metrics: dict[str, MetricValue] = {}
        draw = random.Random(night)  # a second measurement of a night gives the same bits
        for number in range(self._num_metrics):
            noise = draw.gauss() if subject.kind != "canary" else 0.0
            metrics[f"m{number}"] = MetricValue(value=noise, n=4096, direction="higher", margin=0.5)
        folder.put_bytes(repr(metrics).encode(), "scores/set/plain/00000.parquet")
        result = SetResult(
            set_name="set",
            set_hash="0" * 64,
            protocol="plain",
            protocol_hash="1" * 64,
            protocol_content={},
            metrics=metrics,
            scores="scores/set/plain",
        )
        return EvaluationSummary(
            evaluation=f"{night} {attempt}",
            subject=Subject(kind="tokenizer", name=subject.name, digest="2" * 64),
            results=(result,),
            environment=Environment(code="code"),
            measured_at=f"{night}T03:00:00+00:00",
        )


def main() -> None:
    """Run a year and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--metrics", type=int, default=8)
    arguments = parser.parse_args()
    has_chart = find_spec(CHART) is not None
    chart = open_chart({}) if has_chart else Chart(_no_rule, None, "0" * 12)
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(Path(folder), arguments.metrics)
        clock = [datetime(2026, 1, 1, tzinfo=UTC)]
        nightly = Nightly(
            _Measure(arguments.metrics),
            chart,
            lambda: clock[0],
            print_line=lambda _: None,
            require_measurable=lambda _: None,
        )
        session = Session(spec, nightly)
        started, began = time.monotonic(), time.process_time()
        for number in range(arguments.nights):
            clock[0] = datetime.combine(FIRST + timedelta(number), datetime.min.time(), UTC)
            clock[0] += timedelta(hours=2)
            run_night(session)
        ran, computed = time.monotonic() - started, time.process_time() - began
        clock[0] += timedelta(hours=20)
        started = time.monotonic()
        fresh = Session(spec, nightly)
        check(fresh, 14)
        looked = time.monotonic() - started
        states = night_states(fresh.read(), clock[0], chart.version)
    counts: dict[str, int] = {}
    for state in states:
        counts[state.state] = counts.get(state.state, 0) + 1
    judged = "by the night chart" if has_chart else "without the night chart"
    print(
        f"{arguments.nights} nights of {arguments.metrics} metrics, {judged}: "
        f"{ran:.1f} s, {computed:.1f} s of the process itself; {counts}"
    )
    print(f"`nightly check` of them: {looked:.2f} s")


def _spec(folder: Path, num_metrics: int) -> NightlySpec:
    return NightlySpec.model_validate(
        {
            "name": "year",
            "root": str(folder),
            "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "start": FIRST},
            "subjects": {"model": {"kind": "folder", "folder": str(folder)}},
            "evaluation": str(folder),
            "sets": ["set"],
            "protocols": ["plain"],
            "primary": [f"set/plain/m{number}" for number in range(num_metrics)],
        }
    )


if __name__ == "__main__":
    main()
