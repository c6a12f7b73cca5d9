"""Training resumes where it was, by a real worker group on a real cluster."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from dualtoken.infra.ray_session import ray_session
from dualtoken.infra.ray_train import WorkerRun, fit


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)  # workers cannot import a test
    with ray_session("local", num_cpus=2, object_store_mb=100):
        yield
    cloudpickle.unregister_pickle_by_value(this)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
@pytest.mark.usefixtures("_session")
def test_training_goes_on_after_the_last_committed_step(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    storage = tmp_path / "storage"
    settings = {"starts": str(starts), "kill_at": 3, "refuse_at": 0, "steps": 4}
    checkpoint = fit(_loop, settings, name="run", storage_path=str(storage), max_failures=1)
    assert checkpoint == str(storage / "run" / "step-000000004")
    assert starts.read_text().split() == ["0/1", "2/1"]  # killed in step 3, with step 2 committed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
def test_a_further_training_goes_on_with_more_workers_and_raises_the_loop_s_own_error(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    storage = tmp_path / "storage"
    settings = {"starts": str(starts), "kill_at": 0, "refuse_at": 0, "steps": 4}
    fit(_loop, settings, name="run", storage_path=str(storage))
    with pytest.raises(ValueError, match=r"^train\.x=7: set it to 8$"):
        fit(
            _loop,
            {**settings, "steps": 9, "refuse_at": 6},
            name="run",
            storage_path=f"file://{storage}",
            num_workers=2,
        )
    assert starts.read_text().split() == ["0/1", "4/2", "4/2"]
    assert sorted(path.name for path in storage.glob("run/step-*")) == ["step-000000004", "step-000000005"]


def _loop(settings: dict[str, Any], run: WorkerRun) -> None:
    """Counts steps; in each the model's gradient must be the workers' mean."""
    state = {"step": 0}
    with run.latest_checkpoint() as folder:
        if folder is not None:
            state = json.loads((folder / "state.json").read_text())
    with Path(settings["starts"]).open("a") as file:
        file.write(f"{state['step']}/{run.world_size} ")
    model = run.wrap(torch.nn.Linear(1, 1, bias=False))
    for step in range(state["step"] + 1, settings["steps"] + 1):
        if step == settings["refuse_at"]:
            time.sleep(2)  # for the step before to be committed
            raise ValueError("train.x=7: set it to 8")
        if step == settings["kill_at"] and state["step"] == 0:
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        model.zero_grad()
        model(torch.full((1, 1), float(run.rank))).sum().backward()
        (parameter,) = model.parameters()
        assert parameter.grad is not None
        assert parameter.grad.item() == (run.world_size - 1) / 2
        with tempfile.TemporaryDirectory() as folder:
            checkpoint_dir = None
            if run.rank == 0:
                checkpoint_dir = Path(folder)
                (checkpoint_dir / "state.json").write_text(json.dumps({"step": step}))
            run.report(step, {"loss": 1 / step}, checkpoint_dir)
