"""A training's log: what is written down, and what a user sees of it meanwhile."""

import json
import math
from pathlib import Path
from typing import NoReturn

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.evaluation.report import curves
from dualtoken.pipelines.training import metrics_log
from dualtoken.pipelines.training.metrics_log import METRICS, MetricsLog, read_metrics


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
