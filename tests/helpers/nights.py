"""A small nightly: a spec, a rule instead of the chart, and models that are files of values.

A model is a folder with `values.json`, a mapping from metric to value. Measuring it writes a table of scores
that depends on these values and on the evaluator's own state, `evaluator.json` beside the models.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

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
from dualtoken.pipelines.nightly.contracts import Chart, Nightly, Point, SubjectRequest
from dualtoken.pipelines.nightly.records import SeriesState

FIRST = "2026-11-02"
METRICS = ("psnr", "ssim")
PSNR = "model/heldout/plain/psnr"
RULES = "aaaaaaaaaaaa"


class Judged(NamedTuple):
    """What the small rule says of a night."""

    state: SeriesState
    residual: float | None
    reason: str


def small_rule(
    points: Sequence[Point],
    direction: Direction,
    margin: float,
    rules: int,
    baseline: float | None = None,
    acknowledged: Collection[str] = (),
) -> list[Judged]:
    """Compare each night with the first ones of its protocol, or with those since one was acknowledged.

    `rules` is the number of nights that make the reference. A loss of two margins is suspected, one of four
    has regressed.
    """
    judged: list[Judged] = []
    sign = 1 if direction == "higher" else -1
    known: dict[str, list[float]] = {}
    for point in points:
        reference = known.setdefault(point.protocol_hash, [])
        if baseline is not None:
            reference[:] = [baseline] * rules
        if point.night in acknowledged:
            reference.clear()
        if len(reference) < rules:
            reference.append(point.value)
            judged.append(Judged("too_few", None, "Few nights."))
            continue
        residual = sign * (point.value - sum(reference) / len(reference)) / margin
        state: SeriesState = "ok"
        if residual <= -4:
            state = "regressed"
        elif residual <= -2:
            state = "suspected"
        elif residual >= 4:
            state = "improved"
        judged.append(Judged(state, residual, f"{residual:.3g} margins off."))
    return judged


class FakeClock:
    """A clock that stands until it is set."""

    def __init__(self, moment: str) -> None:
        self.now = datetime.fromisoformat(moment).replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **duration: float) -> None:
        """Let time pass."""
        self.now += timedelta(**duration)


def write_model(folder: Path, **values: float) -> None:
    """Write a model, over the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "values.json").write_text(json.dumps({"psnr": 30.0, "ssim": 0.9} | values))


class FolderMeasure:
    """Measures such models; the evaluator's state is read anew each time."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.measured: list[tuple[str, str, str]] = []
        """Night, attempt and subject of each measurement."""

    def __call__(self, subject: SubjectRequest, folder: Store, night: str, attempt: str) -> EvaluationSummary:
        self.measured.append((night, attempt, subject.name))
        evaluator = self.evaluator()
        if evaluator.get("fails"):
            raise RuntimeError(evaluator["fails"])
        assert subject.place is not None
        model = (Path(subject.place) / "values.json").read_bytes()
        # As of a real measurement, the folder's name depends on the night.
        scores = f"scores/{subject.sets[0]}/{subject.protocols[0]}/{night}-{attempt}"
        values: dict[str, float] = json.loads(model)
        offset = float(evaluator.get("offset", 0.0))
        if attempt.endswith("-again"):
            offset += float(evaluator.get("unstable", 0.0))
        table = json.dumps([{name: value + offset for name, value in values.items()}])
        folder.put_bytes(table.encode(), f"{scores}/00000.parquet")
        digest = hashlib.sha256(model).hexdigest()
        summary = EvaluationSummary(
            evaluation=hashlib.sha256(f"{digest} {night} {attempt}".encode()).hexdigest()[:12],
            subject=Subject(kind="tokenizer", name=subject.place, digest=digest),
            results=(self._result(subject, scores, evaluator, values, offset),),
            environment=Environment(
                code="c0de",
                packages={"scipy": str(evaluator.get("scipy", "1.17"))} | evaluator.get("packages", {}),
            ),
            measured_at=f"{night}T03:00:00+00:00",
            notes=tuple(evaluator.get("notes", ())) if subject.name != "canary" else (),
        )
        folder.put_bytes(summary.to_bytes(), "summary.json")
        return summary

    def evaluator(self) -> dict[str, Any]:
        """Return the evaluator's state."""
        file = self._place / "evaluator.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def set_evaluator(self, **state: Any) -> None:
        """Change the evaluator's state."""
        self._place.mkdir(parents=True, exist_ok=True)
        (self._place / "evaluator.json").write_text(json.dumps(state))

    def _result(
        self,
        subject: SubjectRequest,
        scores: str,
        evaluator: dict[str, Any],
        values: dict[str, float],
        offset: float,
    ) -> SetResult:
        content = {"resolution": evaluator.get("resolution", 64)}
        metrics: dict[str, MetricValue] = {}
        for name, value in values.items():
            metrics[name] = MetricValue(
                value=value + offset, n=100, direction="higher", margin=0.05, unit="dB", per_sample=name
            )
        return SetResult(
            set_name=subject.sets[0],
            set_hash=hashlib.sha256(b"set").hexdigest(),
            protocol=subject.protocols[0],
            protocol_hash=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            protocol_content=content,
            metrics=metrics,
            scores=scores,
        )


def small_spec(root: Path | str, models: Path, **changes: Any) -> NightlySpec:
    """Return a spec of one model and a canary, at 02:00 in Berlin."""
    values: dict[str, Any] = {
        "name": "small",
        "root": str(root),
        "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "start": FIRST, "deadline_hours": 6},
        "subjects": {"model": {"kind": "folder", "folder": str(models / "model")}},
        "canary": {"folder": str(models / "canary")},
        "evaluation": str(models / "evaluation.yaml"),
        "sets": ["heldout"],
        "protocols": ["plain"],
        "primary": ["heldout/plain/psnr"],
    }
    schedule = values["schedule"] | changes.pop("schedule", {})
    return NightlySpec.model_validate(values | changes | {"schedule": schedule})


def accept_any(_: NightlySpec) -> None:
    """Ask nothing of a spec: the small nightly has no evaluation file."""


class SmallNightly:
    """Everything that a night needs, in one folder."""

    def __init__(self, folder: Path, root: str | None = None, **changes: Any) -> None:
        self.models = folder / "models"
        write_model(self.models / "model")
        write_model(self.models / "canary")
        self.spec = small_spec(root or folder / "root", self.models, **changes)
        self.measure = FolderMeasure(self.models)
        self.clock = FakeClock(f"{FIRST} 01:00")
        self.lines: list[str] = []
        chart = Chart(small_rule, 3, RULES)
        self.nightly = Nightly(self.measure, chart, self.clock, self.lines.append, accept_any)

    def at(self, night: str, time: str = "01:00") -> "SmallNightly":
        """Set the clock: UTC; nights start at 01:00 in winter."""
        self.clock.now = datetime.fromisoformat(f"{night} {time}").replace(tzinfo=UTC)
        return self
