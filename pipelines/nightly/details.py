"""What is told of a night beside its verdict: what differs from the checkpoint before, and what else moved.

Two questions, two tests. The chart asks whether a night is unlike other nights. Of a recipe's new checkpoint
people also ask whether it differs from the one before on these samples, which a paired test answers. With a
new checkpoint every night nearly all differ, so that test alarms nobody.
"""

import math
from collections.abc import Iterator

from scipy import stats

from dualtoken.pipelines.config.nightly import NightlySpec, RecipeSubject
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import Comparison
from dualtoken.pipelines.evaluation.comparison import compare
from dualtoken.pipelines.evaluation.evaluations import Evaluation, read_scores
from dualtoken.pipelines.evaluation.multiplicity import benjamini_hochberg
from dualtoken.pipelines.evaluation.summary import SUMMARY, EvaluationSummary, summary_folder
from dualtoken.pipelines.nightly.contracts import Chart
from dualtoken.pipelines.nightly.history import History, Snapshot
from dualtoken.pipelines.nightly.records import (
    CheckpointDifferences,
    DetailsRecord,
    MeasuredSubject,
    Movement,
    NightRecord,
    SeriesDifference,
    one_line,
)
from dualtoken.pipelines.nightly.verdicts import is_in_trends, series_points

SCORES_FOLDER = "scores/"
"""Folder of an evaluation's score tables, in its own folder."""


def night_details(
    history: History,
    snapshot: Snapshot,
    spec: NightlySpec,
    night: NightRecord,
    chart: Chart,
    print_line: PrintLine,
) -> DetailsRecord:
    """Return the details of a night that can be compared with others.

    What cannot be read of the checkpoint before costs a line.
    """
    differences: dict[str, CheckpointDifferences] = {}
    for name, subject in spec.subjects.items():
        before = _night_before(snapshot, night, name)
        if not isinstance(subject, RecipeSubject) or before is None:
            continue
        first = before.subjects[name]
        second = night.subjects[name]
        if first.digest == second.digest:
            continue
        try:
            found = _compared(_evaluation(history, first), _evaluation(history, second), spec)
        except (UserError, OSError) as error:
            why = f"is not compared with the checkpoint of {before.night}, {one_line(error)}"
            print_line(f"{night.night}: {name} {why}")
            continue
        differences[name] = CheckpointDifferences(
            before=before.night, digest=first.digest, series=dict(_differences(found))
        )
    return DetailsRecord(
        night=night.night,
        ruleset=chart.version,
        differences=differences,
        movements=_movements(snapshot, spec, night, chart),
    )


def _night_before(snapshot: Snapshot, night: NightRecord, subject: str) -> NightRecord | None:
    """Return the newest night before one whose numbers of a subject can be compared."""
    before: NightRecord | None = None
    for name, files in snapshot.nights.items():
        if name >= night.night:
            break
        if files.night is not None and subject in files.night.subjects and is_in_trends(snapshot, name):
            before = files.night
    return before


def _evaluation(history: History, subject: MeasuredSubject) -> Evaluation:
    """Read an evaluation where it lies now: a history may have been moved since."""
    folder = history.store.at(subject.folder)
    summary = EvaluationSummary.read(folder.at(summary_folder(subject.evaluation)), SUMMARY)
    scores = {}
    for result in summary.results:
        place = folder.at(SCORES_FOLDER + result.scores.rpartition(SCORES_FOLDER)[2]).url
        here = result.model_copy(update={"scores": place})
        scores[result.set_name, result.protocol] = read_scores(here)
    return Evaluation(summary, scores)


def _compared(first: Evaluation, second: Evaluation, spec: NightlySpec) -> Comparison:
    known = second.summary.metrics()
    primary = [name for name in spec.primary if name in known and known[name].per_sample is not None]
    return compare(first.summary, first.scores, second.summary, second.scores, primary)


def _differences(comparison: Comparison) -> Iterator[tuple[str, SeriesDifference]]:
    for series in comparison.series:
        difference = SeriesDifference(
            value=series.difference,
            low=series.low,
            high=series.high,
            p=series.adjusted_p,
            margin=series.margin,
            verdict=series.verdict,
        )
        yield series.series, difference


def _movements(
    snapshot: Snapshot, spec: NightlySpec, night: NightRecord, chart: Chart
) -> dict[str, Movement]:
    """Return how far the series that are not primary are from their earlier nights."""
    residuals: dict[str, float] = {}
    for subject in spec.subjects:
        for series, value in night.subjects[subject].values.items():
            if series in spec.primary:
                continue
            points = series_points(snapshot, subject, series, night)
            judged = chart.judge(points, value.direction, value.margin, chart.rules)[-1]
            if judged.residual is not None and math.isfinite(judged.residual):
                residuals[f"{subject}/{series}"] = judged.residual
    p_values = [float(2 * stats.norm.sf(abs(residual))) for residual in residuals.values()]
    adjusted = benjamini_hochberg(p_values)
    return {
        name: Movement(residual=residual, p=p)
        for (name, residual), p in zip(residuals.items(), adjusted, strict=True)
    }
