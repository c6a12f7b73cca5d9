"""How long a nightly's pages take, and how large the index is.

Run: python -m benchmarks.nightly_page [--nights 365] [--metrics 30]. A history is made up in a scratch
folder: a tokenizer and the canary, each with all metrics every night, eight of them primary and judged by the
chart. The tokenizer is another checkpoint every night, and differs from the one before. Printed are the
seconds to read the history and to write the index with all nights' pages or some, with the processor's in
brackets, and the index's size.
"""

import argparse
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dualtoken.infra.scratch import scratch_folder
from dualtoken.pipelines.config.nightly import MOST_PRIMARY, NightlySpec
from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE, Metric
from dualtoken.pipelines.evaluation.summary import Environment
from dualtoken.pipelines.nightly.chart import Judged, Point, Ruleset, judge
from dualtoken.pipelines.nightly.history import NIGHT_FILE, History, night_path
from dualtoken.pipelines.nightly.page import write_pages
from dualtoken.pipelines.nightly.records import (
    AttemptRecord,
    CheckpointDifferences,
    DetailsRecord,
    MeasuredSubject,
    Movement,
    NightRecord,
    SeriesDifference,
    SeriesValue,
    SeriesVerdict,
    VerdictRecord,
)
from dualtoken.pipelines.nightly.states import night_states

FIRST = date(2026, 1, 1)
HASH = "a" * 64
STEP = 300
"""Night from which on the first metric is worse."""
LOCKED = Environment(
    code=HASH, commit="5eed", packages={"torch": "2.9"}, device="NVIDIA H200", machine="AMD EPYC"
)


class Timer:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._processor = time.process_time()

    def text(self) -> str:
        """Return the seconds since, with the processor's in brackets."""
        wall = time.perf_counter() - self._wall
        return f"{wall:.2f} s ({time.process_time() - self._processor:.2f})"


def spec_of(root: str, metrics: list[str]) -> NightlySpec:
    """Return the spec of the made-up nightly."""
    values: dict[str, Any] = {
        "name": "made-up",
        "root": root,
        "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "start": FIRST.isoformat()},
        "subjects": {"tokenizer": {"kind": "folder", "folder": f"{root}/model"}},
        "evaluation": f"{root}/evaluation.yaml",
        "sets": ["heldout"],
        "protocols": ["plain"],
        "primary": [f"heldout/plain/{name}" for name in metrics[:MOST_PRIMARY]],
    }
    return NightlySpec.model_validate(values)


def value_of(metric: Metric, value: float) -> SeriesValue:
    """Return a metric's value with an interval."""
    return SeriesValue(
        value=value,
        low=value - 2 * metric.margin,
        high=value + 2 * metric.margin,
        n=50_000,
        direction=metric.direction,
        unit=metric.unit,
        margin=metric.margin,
        set_hash=HASH,
        protocol_hash=HASH,
    )


def subject_of(name: str, night: str, values: dict[str, SeriesValue], root: str) -> MeasuredSubject:
    """Return a subject of a night."""
    return MeasuredSubject(
        kind="canary" if name == "canary" else "folder",
        place=None if name == "canary" else f"{root}/model",
        digest=HASH,
        evaluation=HASH[:12],
        folder=f"evaluations/{night}/0001/{name}",
        scores=HASH,
        values=values,
        protocols={"plain": {"resolution": 256}},
        environment=LOCKED,
        notes=(),
        measured_at=f"{night}T03:00:00+00:00",
    )


def judged_series(
    spec: NightlySpec, nights: list[str], values: dict[str, np.ndarray]
) -> dict[str, list[Judged]]:
    """Judge all nights of each primary series at once, as one night after the other would."""
    metrics = {str(name): metric for name, metric in CATALOGUE.items()}
    judged: dict[str, list[Judged]] = {}
    for series in spec.primary:
        metric = metrics[series.rpartition("/")[2]]
        points = [
            Point(night, float(value), HASH) for night, value in zip(nights, values[series], strict=True)
        ]
        judged[f"tokenizer/{series}"] = judge(points, metric.direction, metric.margin, Ruleset())
    return judged


def write_history(spec: NightlySpec, nights: list[str], metrics: list[str]) -> None:
    """Write the nights with their verdicts."""
    history = History(spec.root, spec.name)
    known = {str(name): metric for name, metric in CATALOGUE.items()}
    generator = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for name in metrics:
        values[f"heldout/plain/{name}"] = 0.9 + known[name].margin * generator.standard_normal(len(nights))
    values[f"heldout/plain/{metrics[0]}"][STEP:] -= 20 * known[metrics[0]].margin
    judged = judged_series(spec, nights, values)
    for number, night in enumerate(nights):
        own = {
            series: value_of(known[series.rpartition("/")[2]], float(all_[number]))
            for series, all_ in values.items()
        }
        fixed = {series: value_of(known[series.rpartition("/")[2]], 0.5) for series in values}
        subjects = {
            "tokenizer": subject_of("tokenizer", night, own, spec.root),
            "canary": subject_of("canary", night, fixed, spec.root),
        }
        attempt = AttemptRecord(
            started_at=f"{night}T02:00:00+00:00",
            host="node7",
            pid=41,
            token=night,
            lease_hours=6.0,
            spec="5bec",
        )
        record = NightRecord(
            night=night,
            attempt="0001",
            spec="5bec",
            subjects=subjects,
            missing=(),
            finished_at=f"{night}T03:00:00+00:00",
        )
        history.put(attempt, night_path(night, "attempts", "0001", "started.json"))
        history.put(record, night_path(night, NIGHT_FILE))
        history.put(verdict_of(night, number, judged), night_path(night, f"verdict-{Ruleset().version}.json"))
        if number:
            details = details_of(nights[number - 1], night, number, values)
            history.put(details, night_path(night, f"details-{Ruleset().version}.json"))


def details_of(before: str, night: str, number: int, values: dict[str, np.ndarray]) -> DetailsRecord:
    """Return the differences of a night to the one before, and how far further series moved."""
    known = {str(name): metric for name, metric in CATALOGUE.items()}
    differences: dict[str, SeriesDifference] = {}
    movements: dict[str, Movement] = {}
    for place, (series, all_) in enumerate(values.items()):
        margin = known[series.rpartition("/")[2]].margin
        value = float(all_[number] - all_[number - 1])
        differences[series] = SeriesDifference(
            value=value,
            low=value - margin / 2,
            high=value + margin / 2,
            p=0.01,
            margin=margin,
            verdict="undecided",
        )
        if place >= MOST_PRIMARY:
            movements[f"tokenizer/{series}"] = Movement(residual=0.5, p=0.9)
    found = CheckpointDifferences(before=before, digest=HASH, series=differences)
    return DetailsRecord(
        night=night, ruleset=Ruleset().version, differences={"tokenizer": found}, movements=movements
    )


def verdict_of(night: str, number: int, judged: dict[str, list[Judged]]) -> VerdictRecord:
    """Return a night's verdict."""
    series: dict[str, SeriesVerdict] = {}
    for name, verdicts in judged.items():
        own = verdicts[number]
        series[name] = SeriesVerdict(state=own.state, reason=own.reason, chart=own._asdict())
    bad = any(verdict.state in {"regressed", "drifted"} for verdict in series.values())
    return VerdictRecord(
        night=night,
        ruleset=Ruleset().version,
        state="regressed" if bad else "ok",
        reason="tokenizer/heldout/plain/psnr: Worse by 1 on average of 60 nights." if bad else "",
        series=series,
        reference=FIRST.isoformat(),
        baseline=None,
        changes=(),
        confirmation=None,
        judged_at=f"{night}T03:01:00+00:00",
    )


def main(arguments: list[str]) -> int:
    """Print times and sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--metrics", type=int, default=30)
    options = parser.parse_args(arguments)
    nights = [(FIRST + timedelta(days=number)).isoformat() for number in range(options.nights)]
    metrics = [str(name) for name in CATALOGUE][: options.metrics]
    with scratch_folder() as scratch:
        spec = spec_of(str(scratch), metrics)
        write_history(spec, nights, metrics)
        now = datetime.fromisoformat(f"{nights[-1]}T12:00:00").replace(tzinfo=UTC)
        timer = Timer()
        snapshot = History(spec.root, spec.name).read().with_spec(spec, now)
        states = night_states(snapshot, now, Ruleset().version)
        read = timer.text()
        for num_nights in (1, 60, None):
            timer = Timer()
            out = Path(scratch) / f"pages-{num_nights}"
            index = write_pages(
                spec, snapshot, states, Ruleset().version, lambda: now, out, num_nights=num_nights
            )
            written = timer.text()
            pages = len(list((out / "nights").iterdir()))
            print(
                f"{len(nights)} nights of {len(metrics)} metrics, {pages} with pages: read {read}, "
                f"written {written}, index {index.stat().st_size:,} bytes"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
