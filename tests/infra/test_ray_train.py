"""Lost workers are started again and mistakes are not, by a real worker group on a real cluster."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from ray.train import TrainingFailedError

from dualtoken.infra.ray_session import ray_session
from dualtoken.infra.ray_train import WorkerRun, fit


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)  # workers cannot import a test
    with ray_session("local", num_cpus=2, object_store_mb=100):
        yield
    cloudpickle.unregister_pickle_by_value(this)


def _is_final(error: BaseException) -> bool:
    return isinstance(error, ValueError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
@pytest.mark.usefixtures("_session")
def test_workers_that_died_are_started_again_and_a_mistake_is_raised_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"folder": str(tmp_path), "kill_at": 3, "refuse_at": 0, "fail_at": 0, "steps": 4}
    fit(_loop, settings, name="run", storage_path=str(tmp_path), is_final=_is_final, max_failures=1)
    assert _starts(tmp_path) == ["0/1", "2/1"]

    capfd.readouterr()  # in which Ray tells of the worker that was killed
    settings = {**settings, "refuse_at": 6, "steps": 9}
    with pytest.raises(ValueError, match=r"^train\.x=7: set it to 8$"):
        fit(_loop, settings, name="run", storage_path=str(tmp_path), is_final=_is_final, max_failures=2)
    assert _starts(tmp_path) == ["0/1", "2/1", "4/1"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
def test_two_workers_average_gradients_and_are_started_again_after_what_may_pass(tmp_path: Path) -> None:
    settings = {"folder": str(tmp_path), "kill_at": 0, "refuse_at": 0, "fail_at": 3, "steps": 4}
    with pytest.raises(TrainingFailedError, match="a store that does not answer"):
        fit(
            _loop,
            settings,
            name="run",
            storage_path=f"file://{tmp_path}",
            is_final=_is_final,
            group_sizes=(2,),
            max_failures=1,
        )
    assert _starts(tmp_path) == ["0/2", "2/2"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
def test_a_group_has_the_largest_size_that_there_is_room_for(tmp_path: Path) -> None:
    settings = {"folder": str(tmp_path), "kill_at": 0, "refuse_at": 0, "fail_at": 0, "steps": 2}
    fit(_loop, settings, name="run", storage_path=str(tmp_path), is_final=_is_final, group_sizes=(1, 2, 4))
    assert _starts(tmp_path) == ["0/2"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
def test_failures_before_the_last_progress_are_forgotten_and_a_cut_snapshot_is_not_read(
    tmp_path: Path,
) -> None:
    settings = {
        "folder": str(tmp_path),
        "kill_at": 0,
        "refuse_at": 0,
        "fail_at": 0,
        "steps": 4,
        "kill_always": True,
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_manager_snapshot.json").write_text('{"ray_ver')
    state = str(tmp_path / "state")
    fit(
        _loop,
        settings,
        name="run",
        storage_path=str(tmp_path),
        is_final=_is_final,
        max_failures=1,
        progress=lambda: _read_state(state),
    )
    assert _starts(tmp_path) == ["0/1", "1/1", "2/1", "3/1"]


def _read_state(file: str) -> int | None:
    path = Path(file)
    return int(path.read_text()) if path.exists() else None


def _starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


def _loop(settings: dict[str, Any], run: WorkerRun) -> bool:
    """Count steps, in a file; in each the model's gradient must be the workers' mean."""
    folder = Path(settings["folder"])
    state = folder / "state"
    first = int(state.read_text()) if state.exists() else 0
    if run.rank == 0:
        with (folder / "starts").open("a") as file:
            file.write(f"{first}/{run.world_size} ")
    model = torch.nn.Linear(1, 1, bias=False)
    if run.world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(first + 1, settings["steps"] + 1):
        if step == settings["refuse_at"]:
            raise ValueError("train.x=7: set it to 8")
        if step == settings["fail_at"]:
            raise OSError("a store that does not answer")
        if step == settings["kill_at"] and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        model.zero_grad()
        model(torch.full((1, 1), float(run.rank))).sum().backward()
        (parameter,) = model.parameters()
        assert parameter.grad is not None
        assert parameter.grad.item() == (run.world_size - 1) / 2
        if run.rank == 0:
            state.write_text(str(step))
        if settings.get("kill_always") and step < settings["steps"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return True
