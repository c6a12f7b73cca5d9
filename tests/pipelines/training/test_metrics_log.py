"""A training's log: what is written down, and what a user sees of it meanwhile."""

import json
import math
import uuid
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualtoken.infra.storage import Store
from dualtoken.infra.store_refusals import StoreRefusal
from dualtoken.pipelines.evaluation.report import curves
from dualtoken.pipelines.training import metrics_log
from dualtoken.pipelines.training.metrics_log import EVENTS, METRICS, MetricsLog, read_metrics


@pytest.mark.parametrize(("pause", "printed"), [(0.0, [1, 11, 21]), (3600.0, [1])])
def test_a_training_prints_its_progress_now_and_then(
    pause: float,
    printed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(metrics_log, "PROGRESS_INTERVAL", pause)
    store = Store(str(tmp_path))
    with MetricsLog(store, tmp_path, "train", steps=30) as log:
        for step in (0, 10, 20):
            log.write(step, {"loss": 3.0})
    assert capsys.readouterr().out.splitlines() == [
        f"train: step {step} of 30, loss 3.000" for step in printed
    ]
    assert [line["step"] for line in read_metrics(store)] == [0, 10, 20]


def test_a_value_that_is_not_finite_is_null_in_the_log_and_a_gap_in_the_curve(tmp_path: Path) -> None:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    store = Store(str(tmp_path))
    for first_step in (0, 1):  # a run that resumes writes what was logged before once more
        with MetricsLog(store, tmp_path, "train", steps=2, first_step=first_step) as log:
            log.write(first_step, {"loss": math.nan, "psnr": math.inf})
    logged = [json.loads(line, parse_constant=refuse) for line in store.read(METRICS).splitlines()]
    assert logged == [{"step": step, "loss": None, "psnr": None} for step in (0, 1)]
    assert all(math.isnan(value) for curve in curves("train", logged) for _, value in curve.points)


def test_a_run_that_goes_on_drops_what_was_logged_from_its_step_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with MetricsLog(store, tmp_path, "train", steps=4) as log:
        for step in range(4):
            log.write(step, {"loss": 1.0})
    with MetricsLog(store, tmp_path, "train", steps=4, first_step=2) as log:
        log.write(2, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(store)] == [(0, 1.0), (1, 1.0), (2, 2.0)]


def test_a_line_is_on_disk_as_soon_as_it_is_written_and_one_that_a_kill_cut_is_left_out(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    with MetricsLog(store, tmp_path, "train", steps=4) as log:
        log.write(0, {"loss": 1.0})
        log.save()
        log.write(1, {"loss": 2.0})
        assert [line["step"] for line in read_metrics(store)] == [0, 1]
        with (tmp_path / METRICS).open("a") as file:
            file.write('{"step": 2, "lo')
        assert [line["step"] for line in read_metrics(store)] == [0, 1]
    with MetricsLog(store, tmp_path, "train", steps=4, first_step=1):
        assert (tmp_path / METRICS).read_text() == '{"step": 0, "loss": 1.0}\n'


def test_a_line_without_a_loss_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_log, "PROGRESS_INTERVAL", 0.0)
    with MetricsLog(Store(str(tmp_path)), tmp_path, "train", steps=4) as log:
        log.write(0, {"validation_loss": 3.0})
        log.write(2, {"validation_psnr": 3.0, "loss": 1.0})
        assert log.steps_with("validation_") == {0, 2}
        assert log.steps_with("loss") == {2}
    assert capsys.readouterr().out == "train: step 3 of 4, loss 1.000\n"


def events(folder: Path) -> EventAccumulator:
    """Read TensorBoard's files as TensorBoard does."""
    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0})
    found.Reload()
    return found


def test_tensorboard_shows_a_run_that_went_on_as_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for first_step, level in ((0, 1), (2, 2)):
        with MetricsLog(store, tmp_path, "train", steps=4, first_step=first_step) as log:
            for step in range(first_step, 4 - first_step // 2):
                log.write(step, {"loss": float(level)})
                log.write_pictures(step, {"shown": torch.full((3, 2, 4), level, dtype=torch.uint8)})
                log.write_texts(step, {"said": f"level {level}"})
        for file in (tmp_path / EVENTS).rglob("events.*"):
            # Named by the second, and these runs are in one.
            file.rename(file.with_name(file.name.replace("tfevents.", f"tfevents.{first_step}")))
    shown = events(tmp_path / EVENTS)
    assert [(line.step, line.value) for line in shown.Scalars("loss")] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    samples = events(tmp_path / EVENTS / "pictures")
    pictures = samples.Images("shown")
    assert [(picture.step, picture.width, picture.height) for picture in pictures] == [
        (step, 4, 2) for step in range(3)
    ]
    # TensorBoard drops no texts of a step that came twice, and shows the last one.
    texts = [(text.step, text.tensor_proto.string_val[0]) for text in samples.Tensors("said/text_summary")]
    assert texts == [*((step, b"level 1") for step in range(4)), (2, b"level 2")]


def test_the_use_of_codes_is_told_by_stream_and_depth(tmp_path: Path) -> None:
    counts = {"toy": torch.tensor([[8, 0, 0, 0], [2, 2, 2, 2]])}
    with MetricsLog(Store(str(tmp_path)), tmp_path, "train", steps=4) as log:
        log.write_code_counts(3, counts)
    shown = events(tmp_path / EVENTS)
    values = {
        tag: [(line.step, line.value) for line in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]
    }
    assert values == {
        "codes/toy/usage/depth_0": [(3, 0.25)],
        "codes/toy/usage/depth_1": [(3, 1.0)],
        "codes/toy/perplexity/depth_0": [(3, pytest.approx(1.0))],
        "codes/toy/perplexity/depth_1": [(3, pytest.approx(4.0))],
    }
    largest: dict[str, float] = {}
    for tag in shown.Tags()["histograms"]:
        [histogram] = shown.Histograms(tag)
        largest[tag] = histogram.histogram_value.max
    assert largest == {"codes/toy/counts/depth_0": 8.0, "codes/toy/counts/depth_1": 2.0}


def test_a_log_is_copied_to_storage_and_only_a_failure_that_may_pass_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}/run")
    put = MemoryFileSystem.put_file
    problem: OSError | None = OSError("a store that does not answer")

    def refuse(self: MemoryFileSystem, *arguments: Any, **options: Any) -> None:
        if problem is not None:
            raise problem
        put(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    with MetricsLog(store, tmp_path, "train", steps=4) as log:
        log.write(0, {"loss": 1.0})
        log.save()
        assert "train: the log was not stored (" in capsys.readouterr().err
        problem = PermissionError("no right to write")
        with pytest.raises(StoreRefusal, match="no right to write"):
            log.save()
        problem = None
        log.save()
        assert read_metrics(store) == [{"step": 0, "loss": 1.0}]
        log.write(1, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(store)] == [0, 1], "the last line at the end"
    assert any(name.startswith(EVENTS) for name, _ in store.files("logs"))
