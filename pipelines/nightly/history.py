"""A nightly's history: files below `nightly/<name>/` on any fsspec store, each put only if absent.

::

    spec/<hash>.json   pauses/<from>.json   baselines/<n>.json   acks/<metric>-<night>.json
    rulesets/<hash>.json
    nights/2026-11-28/attempts/<id>/{started,failed}.json   night.json   {verdict,details}-<ruleset>.json
    nights/2026-11-28/alerts/<event>-<sink>.json
    evaluations/2026-11-28/<id>/<subject>/
    bids/
    history.parquet

`history.parquet` is made from the rest. Evaluations lie apart, so that a listing of the nights stays short.
`bids` are there for seconds, on stores without conditional puts (`owners.py`).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.records import (
    AckRecord,
    AttemptRecord,
    BaselineRecord,
    DetailsRecord,
    FailedRecord,
    HistoryRecord,
    NightRecord,
    PauseRecord,
    SpecRecord,
    VerdictRecord,
    moment,
    stamp,
)

FOLDER = "nightly"
NIGHTS = "nights"
NIGHT_FILE = "night.json"
CACHE_FILE = "history.parquet"
_READ_FOLDERS = ("spec", "pauses", "baselines", "acks", NIGHTS)

_NIGHT = rf"{NIGHTS}/\d{{4}}-\d\d-\d\d"
_KINDS: dict[str, type[HistoryRecord]] = {
    r"spec/[0-9a-f]+\.json": SpecRecord,
    r"pauses/[\d-]+\.json": PauseRecord,
    r"baselines/\d+\.json": BaselineRecord,
    r"acks/[^/]+\.json": AckRecord,
    rf"{_NIGHT}/night\.json": NightRecord,
    rf"{_NIGHT}/verdict-[^/]+\.json": VerdictRecord,
    rf"{_NIGHT}/details-[^/]+\.json": DetailsRecord,
    rf"{_NIGHT}/attempts/[^/]+/started\.json": AttemptRecord,
    rf"{_NIGHT}/attempts/[^/]+/failed\.json": FailedRecord,
}
"""What files hold, by their names."""

_RecordT = TypeVar("_RecordT", bound=HistoryRecord)
_SLUG = re.compile(r"[^a-z0-9._-]+")


class Attempt(NamedTuple):
    """An attempt at a night, as far as it is known."""

    started: AttemptRecord
    failed: FailedRecord | None


@dataclass(slots=True)
class NightFiles:
    """The files of a night."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    """By their names, in order; those that repeat another one too."""
    night: NightRecord | None = None
    verdicts: dict[str, VerdictRecord] = field(default_factory=dict)
    """By ruleset."""
    details: dict[str, DetailsRecord] = field(default_factory=dict)
    """By ruleset."""
    alerts: set[str] = field(default_factory=set)
    """Names of the files about alerts."""

    def verdict(self, ruleset: str) -> VerdictRecord | None:
        """Return the verdict by a ruleset, or the newest by another one."""
        if ruleset in self.verdicts:
            return self.verdicts[ruleset]
        return max(self.verdicts.values(), key=lambda verdict: verdict.judged_at, default=None)

    def own_attempts(self) -> dict[str, Attempt]:
        """Return the attempts that do not repeat another one."""
        return {name: found for name, found in self.attempts.items() if found.started.confirms is None}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All files of a history at one moment."""

    specs: tuple[tuple[str, SpecRecord], ...]
    """Specs with their hashes, in the order in which they came into force."""
    pauses: tuple[PauseRecord, ...]
    baselines: tuple[tuple[int, BaselineRecord], ...]
    """Baselines with their numbers, in order."""
    acks: tuple[AckRecord, ...]
    nights: Mapping[str, NightFiles]
    """By night, in order."""

    def files(self, night: str) -> NightFiles:
        """Return a night's files; none where it has none."""
        return self.nights.get(night) or NightFiles()

    def with_spec(self, spec: NightlySpec, now: datetime) -> "Snapshot":
        """Return the snapshot with a spec in force, from `now` on where another one was before."""
        previous = None
        if self.specs:
            previous, newest = self.specs[-1]
            if previous == spec_hash(spec, newest.previous):
                return self
        record = SpecRecord(previous=previous, since=stamp(now), schedule=spec.schedule, spec=spec.record())
        specs = (*self.specs, (spec_hash(spec, previous), record))
        return Snapshot(specs, self.pauses, self.baselines, self.acks, self.nights)


def spec_hash(spec: NightlySpec, previous: str | None) -> str:
    """Hash what decides a nightly, and the spec before it: the same spec may come into force twice."""
    return fingerprint({"spec": _plain(spec.identity()), "previous": previous})


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def slug(text: str) -> str:
    """Return a name of one part for a text such as a series; unlike texts have unlike names."""
    return f"{_SLUG.sub('-', text.lower()).strip('-.')[:80]}-{fingerprint({'text': text})[:8]}"


def night_name(text: str) -> str:
    """Check a night's name as a user gives it; raises `UserError`."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"{text!r} is no night: write its date, such as 2026-11-28") from None


class History:
    """The history of one nightly. What was read once is not read again: files never change."""

    def __init__(self, root: str, name: str) -> None:
        self.store = Store(join(root, FOLDER, name))
        self._known: dict[str, HistoryRecord] = {}

    @cached_property
    def puts_only_if_absent(self) -> bool:
        """Whether the store refuses to put a file where one is; found out once."""
        return self.store.is_local or self.store.honours_put_if_absent()

    def evaluation(self, night: str, attempt: str, subject: str) -> Store:
        """Return the folder of an evaluation."""
        return self.store.at(f"evaluations/{night}/{attempt}/{subject}")

    def put(self, record: HistoryRecord, name: str) -> bool:
        """Write a record unless the file is there; return whether it is there as given."""
        return self.store.put_if_absent(record.to_bytes(), name)

    def get(self, kind: type[_RecordT], name: str) -> _RecordT:
        """Read a record; raises FileNotFoundError, and `UserError` for what cannot be read."""
        return kind.read(self.store, name)

    def read(self) -> Snapshot:
        """Return all files as they are now.

        Raises `UserError` for one that is damaged, or of a newer schema.
        """
        kinds: dict[str, type[HistoryRecord]] = {}
        others: list[str] = []
        for folder in _READ_FOLDERS:
            for name, _ in self.store.files(folder):
                kind = _kind(name)
                if kind is not None:
                    kinds[name] = kind
                elif "/alerts/" in name:
                    others.append(name)
        unread = [name for name in kinds if name not in self._known]
        for name, data in self.store.read_many(unread):
            self._known[name] = kinds[name].from_bytes(data, join(self.store.url, name))
        return _snapshot({name: self._known[name] for name in kinds}, others)


def night_path(night: str, *parts: str) -> str:
    """Name a file of a night."""
    return "/".join((NIGHTS, night, *parts))


def _kind(name: str) -> type[HistoryRecord] | None:
    """Return what a file holds by its name; None for an alert, and for what is not ours."""
    for pattern, kind in _KINDS.items():
        if re.fullmatch(pattern, name, re.ASCII):
            return kind
    return None


def _snapshot(records: Mapping[str, HistoryRecord], alerts: Sequence[str]) -> Snapshot:
    specs: dict[str, SpecRecord] = {}
    pauses: list[PauseRecord] = []
    baselines: list[tuple[int, BaselineRecord]] = []
    acks: list[AckRecord] = []
    of_nights: dict[str, HistoryRecord] = {}
    for name, record in records.items():
        base = name.rpartition("/")[2].removesuffix(".json")
        match record:
            case SpecRecord():
                specs[base] = record
            case PauseRecord():
                pauses.append(record)
            case BaselineRecord():
                baselines.append((int(base), record))
            case AckRecord():
                acks.append(record)
            case _:
                of_nights[name] = record
    return Snapshot(
        specs=_in_order(specs),
        pauses=tuple(pauses),
        baselines=tuple(sorted(baselines, key=lambda item: item[0])),
        acks=tuple(acks),
        nights=MappingProxyType(dict(sorted(_nights(of_nights, alerts).items()))),
    )


def _nights(records: Mapping[str, HistoryRecord], alerts: Sequence[str]) -> dict[str, NightFiles]:
    nights: defaultdict[str, NightFiles] = defaultdict(NightFiles)
    for name, record in records.items():
        parts = name.split("/")
        files = nights[parts[1]]
        match record:
            case NightRecord():
                _require_place(record.night, name)
                files.night = record
            case VerdictRecord():
                _require_place(record.night, name)
                files.verdicts[record.ruleset] = record
            case DetailsRecord():
                _require_place(record.night, name)
                files.details[record.ruleset] = record
            case AttemptRecord():
                failed = records.get(f"{name.rpartition('/')[0]}/failed.json")
                assert failed is None or isinstance(failed, FailedRecord), name
                files.attempts[parts[3]] = Attempt(record, failed)
    for name in alerts:
        parts = name.split("/")
        nights[parts[1]].alerts.add(parts[3])
    return dict(nights)


def _require_place(night: str, name: str) -> None:
    if name.split("/")[1] != night:
        raise UserError(f"{name} is of the night {night}: take the file from a copy of the history")


def _in_order(specs: Mapping[str, SpecRecord]) -> tuple[tuple[str, SpecRecord], ...]:
    """Order specs by their place behind the first; by time where two follow the same one."""

    def place(item: tuple[str, SpecRecord]) -> tuple[int, datetime]:
        depth = 0
        record: SpecRecord | None = item[1]
        while record is not None and record.previous is not None and depth < len(specs):
            record = specs.get(record.previous)
            depth += 1
        return depth, moment(item[1].since)

    return tuple(sorted(specs.items(), key=place))
