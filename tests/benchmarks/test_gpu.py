"""The benchmark of a GPU keeps what its steps found, whatever becomes of one of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_mllm_steps, gpu_report
from benchmarks.gpu_steps import STEPS, Step
from dualtoken.model.config.mllm import NamedTrunk
from dualtoken.model.config.trunk_dimensions import trunk_dimensions
from dualtoken.model.mllm.losses import step_size
from dualtoken.pipelines.runtime.expected_mllm import recipe_shape


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


def test_the_unified_models_step_tells_times_beside_those_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "WARM_UP_SECONDS", 0.0)
    gpu_mllm_steps.measure_mllm(torch.device("cpu"))
    found: dict[str, Any] = {}
    for line in capsys.readouterr().out.splitlines():
        found |= json.loads(line.removeprefix(gpu_report.RESULT))
    for blocks in (1, 2):
        training = found[f"training_{blocks}_blocks"]
        slower = training["milliseconds"] / training["expected_milliseconds"]
        # Both are rounded to four digits.
        assert training["mfu"] == pytest.approx(training["expected_mfu"] / slower, rel=0.01, abs=1e-4)
        assert training["positions_per_second"] == pytest.approx(256e3 / training["milliseconds"], rel=0.01)
        for precision, size in (("float32", 4), ("bfloat16", 2)):
            for together in (1, 2):
                drawing = found[f"drawing_{precision}_{together}_together_{blocks}_blocks"]
                assert drawing["milliseconds_a_position"] > 0
                assert drawing["expected_milliseconds"] > drawing["bound_of_weights_milliseconds"]
                whole = found[f"drawing_float32_{together}_together_{blocks}_blocks"]
                assert drawing["bound_of_weights_milliseconds"] == pytest.approx(
                    size / 4 * whole["bound_of_weights_milliseconds"], abs=1e-4
                )
    assert set(found["seconds_an_image_of_all_blocks"]) == {
        f"{precision}_{together}_together" for precision in ("float32", "bfloat16") for together in (1, 2)
    }


def test_all_blocks_take_what_two_numbers_of_them_say() -> None:
    assert gpu_mllm_steps.of_all_blocks({4: 10.0, 12: 26.0}) == 10 + 32 * 2


def test_the_batch_of_the_unified_models_step_is_full_of_documents() -> None:
    shape = recipe_shape(gpu_mllm_steps.mllm_recipe(torch.device("cuda"), 4))
    assert shape.trunk == trunk_dimensions(QWEN)._replace(depth=4), "the dimensions of Qwen2.5-3B"
    batch = gpu_mllm_steps.packed_batch(shape, 8192, torch.device("cpu"))
    size = step_size(batch)
    assert size.positions == 8192
    assert size.visual == 27 * 256
    assert size.visual_targets == size.all_depths == 14 * 256
    assert size.text_targets == 13 * 40
    assert size.attended == 27 * 298**2 + (8192 - 27 * 298) ** 2
    is_image = batch.is_visual[0].int().diff()
    assert int((is_image == 1).sum()) == 27, "each image stands alone"


QWEN = NamedTrunk(kind="pretrained", model="Qwen/Qwen2.5-3B")
