"""Sessions leave nothing behind, let nobody else in, and never touch a cluster that is not theirs."""

import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.infra.ray_session import (
    AuthenticationRefused,
    ClusterUnreachable,
    ray_session,
    remove_stale_folders,
)
from tests.helpers.waiting import wait_until

DRIVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; a background job ignores it
import ray
from dualtoken.infra.ray_session import ray_session
with ray_session("local", num_cpus=1, object_store_mb=100):
    address = ray.get_runtime_context().gcs_address
    @ray.remote
    class Busy:
        def pid(self):
            return __import__("os").getpid()
    busy = Busy.remote()
    print(ray.get(busy.pid.remote()), address, flush=True)
    time.sleep(600)
"""
STRANGER = """
import sys
import ray
from dualtoken.infra.ray_session import ray_session
try:
    with ray_session(sys.argv[1]):
        print("joined", ray.get(ray.remote(lambda: 5).remote()))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_local_session_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    environment = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    with ray_session(
        "local", num_cpus=1, object_store_mb=100, worker_setup=lambda: os.environ.update(SET_UP="yes")
    ):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        was_set_up = ray.remote(lambda: os.environ.get("SET_UP")).remote()
        assert ray.get(was_set_up) == "yes"
        address: str = ray.get_runtime_context().gcs_address
        processes = _descendants(os.getpid())
        folder = _session_folder(processes)
        assert _stranger(address, {}) == "joined 5"
        assert (
            _stranger(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8})
            == "AuthenticationRefused"
        )
        assert _stranger(address, {"RAY_AUTH_MODE": "disabled"}) == "AuthenticationRefused"
        assert ray.get(ray.remote(lambda: 6).remote()) == 6  # a guest that left did not stop it
        ray.remote(
            lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        ).remote()  # minutes, in a native call
    assert len(processes) > 3
    assert not _running(processes)
    assert not folder.exists()
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not list(tmp_path.iterdir())


def test_a_failed_session_keeps_its_logs_and_says_where(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ZeroDivisionError),
        ray_session("local", num_cpus=1, object_store_mb=100),
    ):
        raise ZeroDivisionError
    (record,) = (record for record in caplog.records if record.name == "dualtoken.infra.ray_session")
    folder = Path(record.getMessage().rpartition(" ")[2])
    assert list(folder.glob("session_*/logs/raylet.out"))
    assert not ray.is_initialized()
    remove_stale_folders(folder.parent)
    assert folder.exists()
    os.utime(folder / "failed", (0, 0))
    remove_stale_folders(folder.parent)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, -signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_session_ends_with_its_driver(sent: signal.Signals, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None
        worker, _ = driver.stdout.readline().split()
        processes = _descendants(driver.pid)
        folder = _session_folder(processes)
        assert int(worker) in {pid for pid, _ in processes}
        driver.send_signal(sent)
        assert driver.wait(30) == status
        wait_until(lambda: not _running(processes), seconds=20)
        wait_until(lambda: not folder.exists(), seconds=5)


def test_only_folders_without_an_owner_are_cleared_away(tmp_path: Path) -> None:
    for name in ("dead", "failed", "alive"):
        folder = tmp_path / f"dualtoken-ray-{name}"
        folder.mkdir()
        (folder / "owner.lock").touch()
    (tmp_path / "dualtoken-ray-failed" / "failed").touch()
    with (tmp_path / "dualtoken-ray-alive" / "owner.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_stale_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dualtoken-ray-alive", "dualtoken-ray-failed"]


HANDLERS_OF_SIGTERM = """
import ctypes, signal, threading, time
from dualtoken.infra.ray_session import ray_session

def handler():
    action = (ctypes.c_ulong * 20)()
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action)
    return action[0]

signal.signal(signal.SIGTERM, lambda *_: None)
seen = {handler()}
is_over = threading.Event()

def watch():
    while not is_over.is_set():
        seen.add(handler())
        time.sleep(0.0005)

watching = threading.Thread(target=watch)
watching.start()
with ray_session("local", num_cpus=1, object_store_mb=100):
    pass
is_over.set()
watching.join()
print(len(seen))
"""


def test_no_native_handler_stands_in_for_ours_while_a_cluster_starts() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANDLERS_OF_SIGTERM], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.split() == ["1"], ended.stderr


@pytest.mark.parametrize(
    "address",
    ["", "auto", "ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1", "host:0", "host:70000"],
)
def test_an_address_that_names_no_cluster_is_an_error(address: str) -> None:
    with pytest.raises(ValueError, match="names no Ray cluster"), ray_session(address):
        pass


def test_a_job_is_told_to_use_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert current_job_address() is None  # set by a user, in no job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert current_job_address() == "10.0.0.5:6379"
    with (
        pytest.raises(ValueError, match=r"inside a job of the Ray cluster 10\.0\.0\.5:6379"),
        ray_session("local"),
    ):
        pass


def test_a_cluster_that_does_not_answer_fails_at_once() -> None:
    since = time.monotonic()
    with (
        pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:9 \(UNAVAILABLE\)") as unreachable,
        ray_session("127.0.0.1:9"),
    ):
        pass
    assert (unreachable.value.exit_code, AuthenticationRefused("x").exit_code) == (75, 2)
    assert time.monotonic() - since < 15


def _stranger(address: str, environment: dict[str, str]) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", STRANGER, address],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return answer.stdout.strip()


Process = tuple[int, str]
"""Its id, and the time it started, which tells it from a later one of the same id."""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ...; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> set[Process]:
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stats[int(entry.name)] = _stat(int(entry.name))

    descendants: set[Process] = set()
    parents = {pid}
    while parents:
        parents = {child for child, fields in stats.items() if fields and int(fields[1]) in parents}
        for child in parents:
            descendants.add((child, stats[child][19]))
    return descendants


def _running(processes: set[Process]) -> set[Process]:
    return {process for process in processes if _is_running(process)}


def _is_running(process: Process) -> bool:
    pid, started = process
    fields = _stat(pid)
    if not fields:
        return False
    return fields[19] == started and fields[0] not in "ZX"


def _session_folder(processes: set[Process]) -> Path:
    """Ray's temp folder, from the command line of its dashboard's process."""
    folders = set()
    for pid, _ in _running(processes):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if "dashboard.py" not in command:
            continue
        for argument in command.split("\0"):
            if argument.startswith("--temp-dir="):
                folders.add(argument.removeprefix("--temp-dir="))
    (folder,) = folders
    return Path(folder)
