"""A signal at any moment of any stage: one sentence, its code, no process left; the same command goes on."""

import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.stages import commands
from tests.helpers.command_line import dualtoken_command, run_dualtoken
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, root_hashes
from tests.helpers.waiting import wait_until

SENTENCE = "dualtoken: stopped; run the same command again to go on\n"
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
IN_PROCESS = ("--in-process",)
ON_RAY = ("--set", "cluster.max_workers=1")
SECONDS = {IN_PROCESS: 10.0, ON_RAY: 25.0}
"""About how long a stage's command takes on two cores: moments are drawn from it."""


class Stopped(NamedTuple):
    """How a command ended that a signal was sent to."""

    code: int
    errors: str
    seconds: float


def stop(
    command: str, root: Path | str, options: tuple[str, ...], sent: signal.Signals, moment: float
) -> Stopped:
    """Start a command, send it a signal so many seconds after it listens, and wait until its processes end.

    A signal in the moments before, while Python itself starts, ends it as it ends any program.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        dualtoken_command(command, TINY, "--root", root, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "TEST_MARK": mark},
        # As in a terminal: a job in the background ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM) or process.poll() is not None, seconds=60)
        time.sleep(moment)
        process.send_signal(sent)
        sent_at = time.monotonic()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - sent_at
    wait_until(lambda: not marked_processes(mark), seconds=60)
    return Stopped(process.returncode, errors, seconds)


def catches(pid: int, sent: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (sent - 1) & 1)


def marked_processes(mark: str) -> list[int]:
    """Return the processes with a mark in their environment, which their children inherit."""
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment:
            pids.append(int(entry.name))
    return pids


def assert_stopped(stopped: Stopped, sent: signal.Signals) -> None:
    if stopped.code == 0:
        return  # the command had ended before
    assert stopped.code == EXIT_CODES[sent], stopped.errors
    assert stopped.errors == SENTENCE
    assert stopped.seconds < 10


@pytest.mark.parametrize(("sent", "moment"), [(signal.SIGINT, 1.0), (signal.SIGHUP, 3.0)])
def test_a_signal_while_a_command_starts_ends_it_with_one_sentence(
    sent: signal.Signals, moment: float, tmp_path: Path
) -> None:
    stopped = stop("scenes", tmp_path, IN_PROCESS, sent, moment)
    assert_stopped(stopped, sent)


def assert_stopped_while_working(stopped: Stopped, sent: signal.Signals) -> None:
    """As `assert_stopped`, but workers on Ray may have said something before."""
    if stopped.code == 0:
        return
    assert stopped.code == EXIT_CODES[sent], stopped.errors
    assert stopped.errors.endswith(SENTENCE)
    before = stopped.errors.removesuffix(SENTENCE).splitlines()
    assert [line for line in before if " pid=" not in line] == []
    assert stopped.seconds < 10


def remove_outputs(recipe: Recipe, command: str) -> list[str]:
    """Remove what a command's stages have made, on every corpus; return the stages' names."""
    names = [stage.name for stage in commands()[command]]
    for planned in list(Planner(recipe).plan()):
        if planned.job and planned.stage in names:
            shutil.rmtree(planned.job.folder)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("options", [IN_PROCESS, ON_RAY], ids=["in process", "on Ray"])
@pytest.mark.parametrize("command", commands())
def test_a_signal_at_any_moment_of_a_stage_ends_it_and_the_same_command_goes_on(
    command: str, options: tuple[str, ...], finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "stopped"))
    recipe = load_tiny(root)
    draw = random.Random(f"{command} {options}")
    stages = remove_outputs(recipe, command)
    for sent in EXIT_CODES:
        moment = draw.uniform(0.5, SECONDS[options])
        assert_stopped_while_working(stop(command, root, options, sent, moment), sent)
    ended = run_dualtoken(command, TINY, "--root", root, *options, timeout_seconds=300)
    assert ended.returncode == 0, ended.stderr
    if command != "report":  # which names its run's folder and times
        assert root_hashes(recipe, *stages) == root_hashes(finished, *stages)


@pytest.mark.slow
@pytest.mark.parametrize("sent", EXIT_CODES)
@pytest.mark.parametrize("options", [IN_PROCESS, ON_RAY], ids=["in process", "on Ray"])
def test_a_signal_in_a_run_of_dagsters_ends_it_and_the_same_command_goes_on(
    sent: signal.Signals, options: tuple[str, ...], finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "stopped"))
    recipe = load_tiny(root)
    for command in ("train", "pretokenize", "report"):
        remove_outputs(recipe, command)
    moment = random.Random(f"{sent} {options}").uniform(5, 2 * SECONDS[options])
    assert_stopped_while_working(stop("run", root, options, sent, moment), sent)
    ended = run_dualtoken("run", TINY, "--root", root, *options, timeout_seconds=300)
    assert ended.returncode == 0, ended.stderr
    assert root_hashes(recipe) == root_hashes(finished)


@pytest.mark.slow
@pytest.mark.parametrize("sent", EXIT_CODES)
def test_a_signal_in_an_upload_ends_it_and_the_same_command_goes_on(
    sent: signal.Signals, finished: Recipe, tmp_path: Path
) -> None:
    draw = random.Random(int(sent))
    with s3_server("moto", tmp_path) as bucket:
        root = f"{bucket}/run"
        assert run_dualtoken("scenes", TINY, "--root", root, *IN_PROCESS).returncode == 0
        for _ in range(3):
            moment = draw.uniform(4, 15)
            assert_stopped_while_working(stop("download", root, IN_PROCESS, sent, moment), sent)
        ended = run_dualtoken("download", TINY, "--root", root, *IN_PROCESS, timeout_seconds=300)
        assert ended.returncode == 0, ended.stderr
        recipe = load_recipe(TINY, [f"root={root}"])
        assert root_hashes(recipe, "download") == root_hashes(finished, "download")
        assert not [name for name, _ in Store(root).files() if ".part" in name]
