"""A helper process answers, and a request that ends it costs that request alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualtoken.infra import helper_process
from dualtoken.infra.helper_process import HelperProcess, RequestCrashed, RequestTooSlow

TARGET = f"{__name__}:open_target"


def open_target() -> Callable[[bytes], bytes]:
    """Return what a helper process of these tests does: a request names it."""
    return answer


def answer(request: bytes) -> bytes:
    """Do what a request names, to a good or a bad end."""
    match request.partition(b" ")[0]:
        case b"echo":
            return request
        case b"pid":
            return str(os.getpid()).encode()
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"spin":
            while True:
                sum(range(10**9))
        case b"greedy":
            bytearray(2**60)
        case b"full":
            raise OSError(24, "Too many open files")
        case b"print":
            os.write(1, b"noise of a library")
    raise ValueError(request.decode())


@pytest.fixture
def helper() -> Iterator[HelperProcess]:
    process = HelperProcess(TARGET)
    yield process
    process.end()


def test_requests_are_answered_by_one_process(helper: HelperProcess) -> None:
    large = b"echo " + bytes(3_000_000)
    assert helper.ask(large, 10) == large
    assert helper.ask(b"pid", 10) == helper.ask(b"pid", 10)
    with pytest.raises(RuntimeError, match="ValueError: print"):
        helper.ask(b"print", 10)
    assert helper.ask(b"echo", 10) == b"echo"


def test_a_request_is_ended_at_its_time_within_a_librarys_loop(helper: HelperProcess) -> None:
    with pytest.raises(RequestTooSlow, match=r"not done in 0\.3 s"):
        helper.ask(b"spin", 0.3)


def test_a_crash_is_told_by_its_signal(helper: HelperProcess) -> None:
    with pytest.raises(RequestCrashed, match="SIGSEGV"):
        helper.ask(b"crash", 10)


def test_the_machines_trouble_is_raised_as_such(helper: HelperProcess) -> None:
    with pytest.raises(OSError, match="Too many open files"):
        helper.ask(b"full", 10)


def test_a_request_that_asks_for_more_memory_than_there_is_is_to_blame(helper: HelperProcess) -> None:
    with pytest.raises(RequestCrashed, match="more memory"):
        helper.ask(b"greedy", 10)


def test_the_next_request_after_a_crash_is_answered_by_a_new_process() -> None:
    first = helper_process.ask(TARGET, b"pid", 10)
    assert helper_process.ask(TARGET, b"pid", 10) == first
    with pytest.raises(RequestCrashed):
        helper_process.ask(TARGET, b"crash", 10)
    assert helper_process.ask(TARGET, b"pid", 10) != first


def test_a_helper_that_the_system_kills_once_costs_no_request() -> None:
    pid = int(helper_process.ask(TARGET, b"pid", 10))
    os.kill(pid, signal.SIGKILL)
    assert helper_process.ask(TARGET, b"echo", 10) == b"echo"


def test_a_helper_whose_process_is_gone_before_it_has_begun_says_nothing() -> None:
    program = f"from dualtoken.infra.helper_process import serve; serve({TARGET!r})"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_helper_ends_with_the_process_that_started_it() -> None:
    program = f"""
import os, signal
from dualtoken.infra import helper_process
print(helper_process.ask({TARGET!r}, b"pid", 10).decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)
