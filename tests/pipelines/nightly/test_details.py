"""Beside the verdict: differences to the checkpoint before, and further metrics that moved; none alarms."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.evaluation.summary import (
    SCORES,
    SUMMARY,
    EvaluationSummary,
    MetricValue,
    SetResult,
    Subject,
    summary_folder,
)
from dualtoken.pipelines.nightly.details import night_details
from dualtoken.pipelines.nightly.history import night_path
from dualtoken.pipelines.nightly.page import write_pages
from dualtoken.pipelines.nightly.records import DetailsRecord, MeasuredSubject
from tests.helpers.night_history import CHART, ENVIRONMENT, WrittenHistory, digest, nights_from, noon, spec_of

PSNR = "heldout/plain/psnr"
SHAPE = "heldout/plain/attribute_shape"
COLOUR = "heldout/plain/attribute_colour"
NIGHTS = nights_from("2026-11-02", 24)
LAST = NIGHTS[-1]
NUM = 400


def scores_of(checkpoint: int, loss: float = 0.0) -> np.ndarray:
    """Return PSNR of each sample: far apart among samples, close between checkpoints."""
    images = np.random.default_rng(0).normal(25, 3, NUM)
    return images + np.random.default_rng(checkpoint + 1).normal(0, 0.2, NUM) - loss


def write_evaluation(written: WrittenHistory, subject: MeasuredSubject, scores: np.ndarray) -> None:
    """Write the evaluation that a subject's record tells of, as if in another place."""
    value = subject.values[PSNR]
    metric = MetricValue(
        value=float(scores.mean()),
        n=NUM,
        direction="higher",
        margin=value.margin,
        unit="dB",
        per_sample="psnr",
    )
    result = SetResult(
        set_name="heldout",
        set_hash=value.set_hash,
        protocol="plain",
        protocol_hash=value.protocol_hash,
        protocol_content={"resolution": 64},
        metrics={"psnr": metric},
        scores=f"/moved/since/{subject.folder}/scores/heldout/plain/f00d",
    )
    summary = EvaluationSummary(
        evaluation=subject.evaluation,
        subject=Subject(kind="tokenizer", name="tokenizer", digest=subject.digest),
        results=(result,),
        environment=ENVIRONMENT,
        measured_at=subject.measured_at,
    )
    folder = written.history.store.at(subject.folder)
    folder.at(summary_folder(subject.evaluation)).put_bytes(summary.to_bytes(), SUMMARY)
    table = pa.table(
        {
            "key": pa.array([row.to_bytes(16, "big") for row in range(NUM)], pa.binary(16)),
            "psnr": pa.array(scores, pa.float64()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    folder.at("scores/heldout/plain/f00d").put_bytes(sink.getvalue().to_pybytes(), SCORES)


def write_nights(root: Path, *, last_loss: float = 0.3, keep_scores: bool = True) -> WrittenHistory:
    """Write nights of a recipe, a new checkpoint every second one; on the last all shapes are told apart."""
    recipe = {"kind": "recipe", "recipe": "scenes", "root": str(root)}
    written = WrittenHistory(spec_of(str(root), subjects={"tokenizer": recipe}, canary={"folder": None}))
    for number, night in enumerate(NIGHTS):
        checkpoint = number // 2
        if night == LAST:
            checkpoint += 1
        scores = scores_of(checkpoint, last_loss if night == LAST else 0.0)
        values = {
            PSNR: float(scores.mean()),
            SHAPE: 0.99 if night == LAST else 0.90 + 0.002 * (number % 3),
            COLOUR: 0.80 + 0.002 * (number % 3),
        }
        subject = written.subject(
            night,
            "tokenizer",
            values,
            kind="recipe",
            place=f"{root}/models/{checkpoint}",
            digest=digest(checkpoint),
        )
        if keep_scores or night == LAST:
            write_evaluation(written, subject, scores)
        canary = written.subject(night, "canary", {PSNR: 11.2})
        written.night(night, ("tokenizer", subject), ("canary", canary))
        written.judge(night)
        details(written, night)
    return written


def details(written: WrittenHistory, night: str, lines: list[str] | None = None) -> DetailsRecord:
    """Make the details of a night as a run does."""
    snapshot = written.read()
    record = snapshot.files(night).night
    assert record is not None
    say = (lines if lines is not None else []).append
    found = night_details(written.history, snapshot, written.spec, record, CHART, say)
    written.history.put(found, night_path(night, f"details-{CHART.version}.json"))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenHistory:
    return write_nights(tmp_path_factory.mktemp("nights"))


def test_a_checkpoint_is_compared_with_the_one_before_sample_by_sample(written: WrittenHistory) -> None:
    found = written.read().files(LAST).details[CHART.version].differences["tokenizer"]
    before = scores_of(len(NIGHTS) // 2 - 1)
    differences = scores_of(len(NIGHTS) // 2, 0.3) - before
    series = found.series[PSNR]
    assert found.before == NIGHTS[-2]
    assert series.value == pytest.approx(differences.mean(), abs=1e-9)
    assert series.low is not None
    assert series.high is not None
    # An unpaired interval would be 0.8 dB wide.
    assert 0.02 < series.high - series.low < 0.1
    assert series.verdict == "worse"


def test_a_night_with_the_checkpoint_of_the_night_before_has_no_difference(written: WrittenHistory) -> None:
    nights = written.read().nights
    assert nights[NIGHTS[4]].details[CHART.version].differences.keys() == {"tokenizer"}
    assert nights[NIGHTS[5]].details[CHART.version].differences == {}


def test_a_model_in_a_folder_has_no_checkpoint_before(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    for number, night in enumerate(NIGHTS[:2]):
        subject = written.subject(night, "tokenizer", {PSNR: 25.0}, digest=digest(number))
        written.night(night, ("tokenizer", subject))
    assert details(written, NIGHTS[1]).differences == {}


def test_a_checkpoint_whose_scores_are_gone_costs_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    written = write_nights(tmp_path, keep_scores=False)
    assert details(written, LAST, lines).differences == {}
    assert len(lines) == 1
    assert lines[0].startswith(f"{LAST}: tokenizer is not compared with the checkpoint of {NIGHTS[-2]}, ")


def test_of_further_metrics_those_that_moved_are_told_from_those_that_did_not(
    written: WrittenHistory,
) -> None:
    moved = written.read().files(LAST).details[CHART.version].movements
    assert moved.keys() == {f"tokenizer/{SHAPE}", f"tokenizer/{COLOUR}"}
    assert moved[f"tokenizer/{SHAPE}"].p < 0.001
    assert moved[f"tokenizer/{SHAPE}"].residual > 0
    assert moved[f"tokenizer/{COLOUR}"].p > 0.05


def test_the_index_shows_differences_beside_the_level_and_what_moved(
    written: WrittenHistory, tmp_path: Path
) -> None:
    states = written.states(noon(LAST))
    index = write_pages(written.spec, written.read(), states, CHART.version, lambda: noon(LAST), tmp_path)
    text = " ".join(re.sub("<[^>]+>", "", index.read_text()).split())
    difference = "\u22120\\.\\d+ dB \\(\u22120\\.\\d+ to \u22120\\.\\d+\\), p < 0\\.001: worse"
    difference = difference.replace("<", "&lt;")
    assert re.search(f"on the same samples {difference}, 25 Nov 2026 against 24 Nov 2026", text)
    assert "tokenizer: 2 metrics, 1 moved" in text
    assert "Shapes told by codes ▲better 99.00 %" in text
    assert re.search("Colours told by codes steady ?80.40 %", text)
