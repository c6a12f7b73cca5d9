"""`evaluate` and `compare` as a user calls them."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.evaluation.evaluations import made_from
from dualtoken.pipelines.evaluation.summary import EvaluationSummary
from tests.helpers.command_line import printed_lines
from tests.helpers.tiny_run import planned_job

EVALUATION = """
name: test
in_process: true
sets: {few: {kind: scenes, num_images: 40}}
protocols:
  pixels: {metrics: [psnr, usage_pixel], batch_size: 20}
  words: {metrics: [attribute_colour, image_to_text], batch_size: 20}
"""

UNIFIED_EVALUATION = """
name: test
in_process: true
sets: {asked: {kind: scenes, num_images: 6, questions: true}}
protocols:
  answers: {metrics: [answer, answer_shuffled, described_grammar, image_to_text], batch_size: 4}
"""


@pytest.fixture(scope="module")
def sets_and_protocols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("evaluation") / "evaluation.yaml"
    file.write_text(EVALUATION)
    return file


def error_of(*arguments: object) -> str:
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(ended.exception, UserError), ended.output
    assert "\n" not in str(ended.exception)
    return str(ended.exception)


def summary_of(lines: list[str]) -> str:
    assert lines[-1].startswith("summary: ")
    return lines[-1].removeprefix("summary: ")


def test_a_runs_tokenizer_is_measured_and_compared_with_another(
    finished: Recipe, sets_and_protocols: Path, tmp_path: Path
) -> None:
    options = ("--evaluation", sets_and_protocols, "--root", tmp_path / "results")
    lines = printed_lines("evaluate", finished.root, *options)
    assert lines[0].startswith("set few: 40 images")
    assert any(line.startswith("few by pixels") for line in lines)
    assert any("PSNR" in line and line.endswith("dB") for line in lines)
    page = (Path(summary_of(lines)) / "index.html").read_text()
    assert page.count("<img ") == 2 * 12, "twelve images, each beside its reconstruction"
    assert page.count('class="chart bars') == 1, "the spread of PSNR"
    model = planned_job(finished, "train").store()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model.path(name), other / name)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-64:] = bytes(64)
    (other / "model.safetensors").write_bytes(weights)
    teacher = planned_job(finished, "teacher").folder
    again = printed_lines("evaluate", other, *options, "--teacher", teacher, "--protocol", "pixels")
    compared = printed_lines(
        "compare", summary_of(lines), summary_of(again), "--out", tmp_path / "page", "--num-samples", 3
    )
    assert any(line.startswith("few/pixels/psnr (dB)") for line in compared)
    assert "only in A: few/words/attribute_colour, few/words/image_to_text" in compared
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("<img ") in (0, 3, 6, 9)
    assert (tmp_path / "page/comparison.json").is_file()
    same = printed_lines("compare", summary_of(lines), summary_of(lines), "--fail-if-worse")
    assert any("equal within margin" in line for line in same)


def test_a_runs_unified_model_is_measured_by_its_stage_or_its_folder(
    finished: Recipe, tmp_path: Path
) -> None:
    file = tmp_path / "evaluation.yaml"
    file.write_text(UNIFIED_EVALUATION)
    options = ("--evaluation", file, "--root", tmp_path / "results", "--protocol", "answers")
    lines = printed_lines("evaluate", finished.root, "--stage", "mllm", *options)
    assert any("Questions answered" in line and line.endswith("%") for line in lines)
    assert any("Own caption found" in line for line in lines), "its tokenizer's teacher is found"
    folder = planned_job(finished, "mllm").folder
    assert summary_of(printed_lines("evaluate", folder, *options)) == summary_of(lines)
    assert "answer needs a unified model, and" in error_of("evaluate", finished.root, *options)


def test_a_model_at_a_url_is_read_where_it_is_and_its_teacher_found(
    finished: Recipe, sets_and_protocols: Path, tmp_path: Path
) -> None:
    options = ("--evaluation", sets_and_protocols, "--root", tmp_path, "--protocol", "words")
    by_url = summary_of(printed_lines("evaluate", f"file://{finished.root}", *options))
    (result,) = EvaluationSummary.from_bytes((Path(by_url) / "summary.json").read_bytes()).results
    record = made_from(result)
    assert record.inputs["model"] == planned_job(finished, "train").folder, "not a copy of this machine's"
    assert record.inputs["teacher"] == planned_job(finished, "teacher").folder


def test_a_loss_ends_with_its_exit_code(finished: Recipe, sets_and_protocols: Path, tmp_path: Path) -> None:
    options = ("--evaluation", sets_and_protocols, "--protocol", "pixels")
    fine = summary_of(printed_lines("evaluate", finished.root, *options, "--root", tmp_path))
    worse = tmp_path / "worse"
    shutil.copytree(fine, worse)
    scores = next((tmp_path / "scores/few/pixels").iterdir())
    shutil.copytree(scores, tmp_path / "lowered")
    lower(tmp_path / "lowered/scores.parquet", worse / "summary.json", scores, tmp_path / "lowered")
    ended = CliRunner().invoke(app, ["compare", fine, str(worse), "--fail-if-worse"])
    assert ended.exit_code == ExitCode.REGRESSED, ended.output


def lower(table: Path, summary: Path, scores: Path, lowered: Path) -> None:
    """Take 1 dB off every sample's PSNR, as a broken decoder would."""
    stored = pq.read_table(table)
    place = stored.column_names.index("psnr")
    lowered_column = pa.array(stored["psnr"].to_numpy() - 1)
    pq.write_table(stored.set_column(place, "psnr", lowered_column), table)
    read = EvaluationSummary.from_bytes(summary.read_bytes())
    (result,) = read.results
    value = result.metrics["psnr"]
    changed = value.model_copy(update={"value": value.value - 1})
    result = result.model_copy(
        update={"metrics": dict(result.metrics) | {"psnr": changed}, "scores": str(lowered)}
    )
    summary.write_bytes(read.model_copy(update={"results": (result,)}).to_bytes())
    assert scores != lowered


def test_mistakes_are_told_in_one_line(finished: Recipe, sets_and_protocols: Path, tmp_path: Path) -> None:
    options = ("--evaluation", sets_and_protocols, "--root", tmp_path)
    assert "--set fw is not there: did you mean few?" in error_of(
        "evaluate", finished.root, *options, "--set", "fw"
    )
    submitted = ("submit", "evaluate", finished.root, *options, "--address", "http://127.0.0.1:1")
    assert "--set fw is not there: did you mean few?" in error_of(*submitted, "--set", "fw")
    assert "--protocol pixel" in error_of("evaluate", finished.root, *options, "--protocol", "pixel")
    assert "evaluation 'evaluation-scene' is no file: did you mean evaluation-scenes?" in error_of(
        "evaluate", finished.root, "--evaluation", "evaluation-scene"
    )
    bad_metric = ("--key", "protocols.pixels.metrics=[pnsr]")
    assert "pnsr" in error_of("evaluate", finished.root, *options, *bad_metric)
    assert "has no summary.json" in error_of("compare", tmp_path, tmp_path)
    alone = tmp_path / "model"
    alone.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(planned_job(finished, "train").store().path(name), alone / name)
    assert "no teacher is known" in error_of("evaluate", alone, *options, "--protocol", "words")
