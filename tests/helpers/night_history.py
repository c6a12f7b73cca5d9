"""A nightly's history that is written rather than measured, through the records that nights write."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE
from dualtoken.pipelines.evaluation.summary import Environment
from dualtoken.pipelines.nightly.chart import Ruleset, judge
from dualtoken.pipelines.nightly.contracts import Chart
from dualtoken.pipelines.nightly.history import NIGHT_FILE, History, Snapshot, night_path, slug
from dualtoken.pipelines.nightly.records import (
    AckRecord,
    AttemptRecord,
    BaselineRecord,
    Confirmation,
    FailedRecord,
    MeasuredSubject,
    NightRecord,
    PauseRecord,
    SeriesValue,
    VerdictRecord,
)
from dualtoken.pipelines.nightly.states import NightState, night_states
from dualtoken.pipelines.nightly.verdicts import judge_night

CHART = Chart(judge, Ruleset(), Ruleset().version)
ENVIRONMENT = Environment(
    code="c0de" * 16,
    commit="5eed" * 10,
    packages={"torch": "2.9.0", "pillow": "12.0.0"},
    device="cpu",
    machine="AMD EPYC",
)


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def spec_of(root: str, **changes: Any) -> NightlySpec:
    """Return a spec of a tokenizer at 02:00 in Berlin, that may alarm by PSNR and by shapes told."""
    values: dict[str, Any] = {
        "name": "small",
        "root": root,
        "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "start": "2026-11-02"},
        "subjects": {"tokenizer": {"kind": "folder", "folder": f"{root}/models/tokenizer"}},
        "evaluation": f"{root}/evaluation.yaml",
        "sets": ["heldout"],
        "protocols": ["plain"],
        "primary": ["heldout/plain/psnr"],
    }
    schedule = values["schedule"] | changes.pop("schedule", {})
    return NightlySpec.model_validate(values | changes | {"schedule": schedule})


class WrittenHistory:
    """Writes nights and what people decide, and judges nights by the real chart."""

    def __init__(self, spec: NightlySpec) -> None:
        self.spec = spec
        self.history = History(spec.root, spec.name)
        self.snapshot = self.read()

    def read(self) -> Snapshot:
        return self.history.read().with_spec(self.spec, datetime(2020, 1, 1, tzinfo=UTC))

    def states(self, now: datetime) -> list[NightState]:
        return night_states(self.read(), now, CHART.version)

    def attempt(self, night: str, name: str = "0001", reason: str | None = None, **changes: Any) -> None:
        """Write an attempt, which failed where a reason is given."""
        started = f"{night}T01:00:00+00:00"
        values = {"started_at": started, "host": "node7", "pid": 41, "token": name, "lease_hours": 6.0}
        record = AttemptRecord.model_validate(values | {"spec": "5bec"} | changes)
        self.history.put(record, night_path(night, "attempts", name, "started.json"))
        if reason is not None:
            failed = FailedRecord(reason=reason, failed_at=f"{night}T01:30:00+00:00")
            self.history.put(failed, night_path(night, "attempts", name, "failed.json"))

    def subject(
        self, night: str, name: str, values: Mapping[str, float], attempt: str = "0001", **changes: Any
    ) -> MeasuredSubject:
        """Return a subject that came to some values by series."""
        protocol = changes.pop("protocol", {"resolution": 64})
        scores = digest(sorted(values.items()))
        half = changes.pop("half_interval", 0.1)
        found: dict[str, SeriesValue] = {}
        for series, value in values.items():
            metric = {str(key): entry for key, entry in CATALOGUE.items()}[series.rpartition("/")[2]]
            found[series] = SeriesValue(
                value=value,
                low=value - half,
                high=value + half,
                n=1000,
                direction=metric.direction,
                unit=metric.unit,
                margin=metric.margin,
                set_hash=digest("set"),
                protocol_hash=digest(protocol),
            )
        fields: dict[str, Any] = {
            "kind": "canary" if name == "canary" else "folder",
            "place": None if name == "canary" else f"{self.spec.root}/models/{name}",
            "digest": digest(name),
            "evaluation": digest(f"{night} {attempt} {name}")[:12],
            "folder": f"evaluations/{night}/{attempt}/{name}",
            "scores": scores,
            "values": found,
            "protocols": {"plain": protocol},
            "environment": ENVIRONMENT,
            "notes": (),
            "measured_at": f"{night}T01:20:00+00:00",
        }
        return MeasuredSubject.model_validate(fields | changes)

    def night(
        self, night: str, *subjects: tuple[str, MeasuredSubject], attempt: str = "0001", **changes: Any
    ) -> None:
        """Write a night with its attempt; `judge` says what it comes to."""
        self.attempt(night, attempt, backfilled=changes.get("backfilled", False))
        record = NightRecord(
            night=night,
            attempt=attempt,
            spec="5bec",
            subjects=dict(subjects),
            missing=changes.pop("missing", ()),
            finished_at=f"{night}T01:25:00+00:00",
            **changes,
        )
        self.history.put(record, night_path(night, NIGHT_FILE))

    def judge(self, night: str, confirmation: Confirmation | None = None) -> VerdictRecord:
        """Judge a night as a run does."""
        snapshot = self.read()
        record = snapshot.files(night).night
        assert record is not None
        verdict = judge_night(snapshot, self.spec, record, CHART, f"{night}T01:26:00+00:00", confirmation)
        self.history.put(verdict, night_path(night, f"verdict-{CHART.version}.json"))
        return verdict

    def pause(self, first: str, last: str, reason: str = "the cluster moves", who: str = "eva") -> None:
        record = PauseRecord(
            first=date.fromisoformat(first),
            last=date.fromisoformat(last),
            who=who,
            reason=reason,
            decided_at=f"{first}T00:00:00+00:00",
        )
        self.history.put(record, f"pauses/{first}.json")

    def acknowledge(self, series: str, night: str, reason: str = "a new loss") -> None:
        record = AckRecord(
            series=series, night=night, who="ada", reason=reason, decided_at=f"{night}T09:00:00+00:00"
        )
        self.history.put(record, f"acks/{slug(series)}-{night}.json")

    def accept(self, number: int, night: str, reason: str = "the first good one") -> None:
        record = BaselineRecord(
            night=night, evaluations={}, who="ada", reason=reason, decided_at=f"{night}T10:00:00+00:00"
        )
        self.history.put(record, f"baselines/{number}.json")


def nights_from(first: str, number: int) -> list[str]:
    """Return the dates of some nights in a row."""
    start = date.fromisoformat(first)
    return [(start + timedelta(days=day)).isoformat() for day in range(number)]


def noon(night: str) -> datetime:
    """Return the noon after a night."""
    return datetime.fromisoformat(f"{night}T12:00:00+00:00")
