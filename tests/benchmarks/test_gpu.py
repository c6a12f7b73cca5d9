"""The benchmark of a GPU keeps what its steps found, whatever becomes of one of them."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_steps import STEPS, Step


def nothing(_: torch.device) -> None:
    """Stand for a step: it is found by its name, in another process."""


@pytest.mark.slow
def test_a_step_that_fails_or_takes_too_long_takes_no_other_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["gpu", "--device", "cpu", "--out", str(tmp_path), "--limit", "500"]
    monkeypatch.setattr(sys, "argv", arguments)
    steps = (
        Step("nowhere", 100, "fails", nothing),
        Step("encode", 0.5, "is ended", nothing),
        Step("kernel_speed", 200, "is done", nothing),
    )
    assert gpu.main(steps) == 1
    failed, ended, done = json.loads((tmp_path / "gpu.json").read_text())
    assert failed["failed"] == "exit code 2"
    assert "invalid choice: 'nowhere'" in failed["stderr"]
    assert ended["failed"] == "not done after 0 s"
    assert "failed" not in done
    assert done["found"]["microseconds_an_image_1"] > 0
    assert "kernel_speed:" in capsys.readouterr().out


def test_no_step_is_begun_when_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--limit", "5"])
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert said.count("not begun") == len(STEPS)
    assert list(tmp_path.iterdir()) == []
