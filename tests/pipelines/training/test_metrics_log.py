"""A training's log: what is written down, and what a user sees of it meanwhile."""

from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.training import metrics_log
from dualtoken.pipelines.training.metrics_log import MetricsLog, read_metrics


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
