"""Checkpoints are measured beside a training, by a real worker group on a real cluster."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.train import Checkpoint

from dualtoken.infra.ray_session import ray_session
from dualtoken.infra.ray_stop_notice import StopNotice
from dualtoken.infra.ray_train import WorkerRun, fit
from dualtoken.infra.ray_validation import Validation, validation_config
from tests.helpers.waiting import wait_until


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)  # tasks cannot import a test
    with ray_session("local", num_cpus=3, object_store_mb=100):
        yield
    cloudpickle.unregister_pickle_by_value(this)


def _never(_: BaseException) -> bool:
    return False


def _fit(loop: Callable[[dict[str, Any], WorkerRun], bool], folder: Path, validation: Validation) -> None:
    """Train in one worker, which leaves in the folder what it finds."""
    fit(
        loop,
        {"folder": str(folder)},
        name="run",
        storage_path=str(folder),
        is_final=_never,
        validation=validation,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
@pytest.mark.usefixtures("_session")
def test_a_validation_that_dies_or_fails_costs_a_line_and_no_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _fit(_loop, tmp_path, Validation(_measure, _give_up, timeout_seconds=600))
    assert (tmp_path / "starts").read_text() == "x"
    assert [(tmp_path / f"found-{step}").read_text() for step in range(3)] == ["1.5", "none", "none"]
    told = "".join(capfd.readouterr())
    assert told.count("step 1 is not validated: ") == 1
    assert told.count("step 2 is not validated: no held-out images") == 1
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
def test_a_validation_that_hangs_is_killed_in_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _fit(_one_validation, tmp_path, Validation(_hang, _give_up, timeout_seconds=2))
    assert (tmp_path / "found-0").read_text() == "none"
    assert "step 0 is not validated: it took over 2 s" in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.usefixtures("_session")
def test_a_validation_amid_a_stop_is_killed_and_left_to_the_next_run(tmp_path: Path) -> None:
    """On a cluster that lives on, its process would keep a worker's resources."""
    notice = StopNotice(uuid.uuid4().hex)
    settings = {"folder": str(tmp_path), "notice": notice}
    validation = Validation(_stop_and_hang, _give_up, timeout_seconds=600)
    config = validation_config(validation, settings, {"CPU": 1}, notice)
    assert config.fn(Checkpoint(str(tmp_path)), step=0) == {}
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), seconds=60)
    assert not (tmp_path / "found-0").exists(), "it is not given up"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_session")
@pytest.mark.parametrize(
    ("sizes", "taken"), [((1, 2), 2), ((1, 3), 1)], ids=["room for all", "room for all but the task"]
)
def test_a_group_that_may_grow_is_the_largest_that_leaves_room_for_a_validation(
    sizes: tuple[int, ...], taken: int, tmp_path: Path
) -> None:
    """On three CPUs, one for each worker and for the task."""
    fit(
        _one_validation,
        {"folder": str(tmp_path)},
        name="run",
        storage_path=str(tmp_path),
        is_final=_never,
        group_sizes=sizes,
        validation=Validation(_measure, _give_up, timeout_seconds=600),
    )
    assert (tmp_path / "sizes").read_text().split() == [str(taken)]
    assert (tmp_path / "found-0").read_text() == "1.5"


def _one_validation(settings: dict[str, Any], run: WorkerRun) -> bool:
    """Ask for a validation, and wait for it."""
    folder = Path(settings["folder"])
    checkpoint = folder / "run" / "step-0"
    if run.rank == 0:
        with (folder / "sizes").open("a") as file:
            file.write(f"{run.world_size} ")
        checkpoint.mkdir()
        (checkpoint / "weight").write_text("1.5")
    run.request_validation("step-0", 0)
    while not (folder / "found-0").exists():
        time.sleep(0.05)
    return True


def _hang(*_: object) -> dict[str, float]:
    time.sleep(3600)
    return {}


def _stop_and_hang(settings: dict[str, Any], _step: int) -> dict[str, float]:
    """Leave the process's id, and hang on once the run is asked to stop."""
    (Path(settings["folder"]) / "pid").write_text(str(os.getpid()))
    settings["notice"].give()
    time.sleep(3600)
    return {}


def _loop(settings: dict[str, Any], run: WorkerRun) -> bool:
    """Ask for three validations, and wait for all of them."""
    folder = Path(settings["folder"])
    with (folder / "starts").open("a") as file:
        file.write("x")
    for step in range(3):
        checkpoint = folder / "run" / f"step-{step}"
        checkpoint.mkdir()
        (checkpoint / "weight").write_text(str(1.5 + step))
        run.request_validation(f"step-{step}", step)
    while not (folder / "found-2").exists():
        time.sleep(0.05)
    return True


def _measure(settings: dict[str, Any], step: int) -> dict[str, float]:
    if step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 2:
        raise ValueError("no held-out images")
    folder = Path(settings["folder"])
    weight = (folder / "run" / f"step-{step}" / "weight").read_text()
    (folder / f"found-{step}").write_text(weight)
    return {"weight": float(weight)}


def _give_up(settings: dict[str, Any], step: int) -> None:
    (Path(settings["folder"]) / f"found-{step}").write_text("none")
