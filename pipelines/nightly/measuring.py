"""Measures the subjects of a night, each anew, and makes the night's record of what came out."""

import hashlib
import math

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.core.receipts import hash_lines
from dualtoken.pipelines.evaluation.summary import EvaluationSummary
from dualtoken.pipelines.nightly.attempts import Claim
from dualtoken.pipelines.nightly.contracts import Measure, SubjectRequest
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.records import MeasuredSubject, SeriesValue

TABLE = ".parquet"
"""Suffix of score tables; receipts beside them tell when they were made."""


def measure_subject(
    history: History, measure: Measure, request: SubjectRequest, own: Claim
) -> MeasuredSubject:
    """Measure a subject into a folder of its own; nothing that lies elsewhere is used."""
    folder = history.evaluation(own.night, own.name, request.name)
    summary = measure(request, folder, own.night, own.name)
    values: dict[str, SeriesValue] = {}
    for result in summary.results:
        for metric, value in result.metrics.items():
            if math.isfinite(value.value):
                values[result.series(metric)] = SeriesValue(
                    value=value.value,
                    low=_finite(value.low),
                    high=_finite(value.high),
                    n=value.n,
                    direction=value.direction,
                    unit=value.unit,
                    margin=value.margin,
                    set_hash=result.set_hash,
                    protocol_hash=result.protocol_hash,
                )
    return MeasuredSubject(
        kind=request.kind,
        place=request.place,
        digest=summary.subject.digest,
        evaluation=summary.evaluation,
        folder=folder.url.removeprefix(f"{history.store.url}/"),
        scores=scores_digest(folder, summary),
        values=values,
        protocols={result.protocol: result.protocol_content for result in summary.results},
        environment=summary.environment,
        notes=summary.notes,
        measured_at=summary.measured_at,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def scores_digest(folder: Store, summary: EvaluationSummary) -> str:
    """Hash all score tables and values of an evaluation, but nothing that tells when or where it was made.

    Raises FileNotFoundError where a result has no tables: nothing would show that bits have changed.
    """
    lines: list[bytes] = []
    for result in summary.results:
        tables = 0
        stored = [name for name, _ in folder.files(result.scores) if name.endswith(TABLE)]
        for name, data in folder.read_many(stored):
            # The folder's name is a fingerprint, in which the night counts.
            table = f"{result.set_name}/{result.protocol}/{name.removeprefix(result.scores)}"
            lines.append(f"{table} {hashlib.sha256(data).hexdigest()}\n".encode())
            tables += 1
        if not tables:
            raise FileNotFoundError(f"{folder.url}/{result.scores} has no score tables")
        for metric, value in result.metrics.items():
            lines.append(f"{result.series(metric)} {value.value!r} {value.n}\n".encode())
    return hash_lines(lines)


def missing_parts(spec: NightlySpec, subjects: dict[str, MeasuredSubject]) -> tuple[str, ...]:
    """Name what the spec wants and the evaluations lack: sets, protocols, and primary series."""
    missing: list[str] = []
    for name, subject in subjects.items():
        pairs = {tuple(series.split("/")[:2]) for series in subject.values}
        for set_name in spec.sets:
            missing += [
                f"{name}/{set_name}/{protocol}"
                for protocol in spec.protocols
                if (set_name, protocol) not in pairs
            ]
        if name in spec.subjects:
            missing += [f"{name}/{series}" for series in spec.primary if series not in subject.values]
    return tuple(missing)
