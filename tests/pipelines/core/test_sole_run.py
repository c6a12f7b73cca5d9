"""One run at a time in a folder, and none that is dead keeps it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core import sole_run as module
from dualtoken.pipelines.core.sole_run import LEASE_FILE, AnotherRunError, sole_run
from dualtoken.pipelines.errors import ExitCode, exit_code

HOLDER = """
import sys, time
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.sole_run import sole_run
with sole_run(Store(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_local_folder_names_the_first_and_a_killed_one_blocks_nobody(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path / "stage"))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.root], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "at work\n"
        with pytest.raises(AnotherRunError, match=rf"another run \(process {holder.pid} on ") as error:
            sole_run(store).__enter__()
        assert exit_code(error.value) == ExitCode.TEMPORARY
        holder.send_signal(signal.SIGKILL)
    with sole_run(store):
        pass
    assert not list((tmp_path / "stage/logs").iterdir())


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(module, "EXPIRES_AFTER", 1.0)
    store = Store("memory://sole-run")
    store.remove(LEASE_FILE)
    return store


def test_a_second_run_in_a_remote_folder_is_refused_while_the_first_renews_its_lease(remote: Store) -> None:
    with sole_run(remote):
        with pytest.raises(AnotherRunError, match=rf"process {os.getpid()} on .* memory://"):
            sole_run(remote).__enter__()
        time.sleep(0.3)  # renewals go on
        with pytest.raises(AnotherRunError):
            sole_run(remote).__enter__()
    assert not remote.exists(LEASE_FILE)


@pytest.mark.parametrize("lease", [b'{"owner": "gone", "where": "process 1 on another"}', b'{"own'])
def test_a_lease_that_nobody_renews_is_taken_over(lease: bytes, remote: Store) -> None:
    remote.put_bytes(lease, LEASE_FILE)
    with sole_run(remote):
        assert b"gone" not in remote.read(LEASE_FILE)
    assert not remote.exists(LEASE_FILE)
