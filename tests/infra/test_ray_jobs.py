"""Submission by the Ray Jobs API, against a real cluster with token authentication on."""

import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from dualtoken.infra.ray_jobs import (
    AuthenticationRefused,
    ClusterUnreachable,
    JobOutcome,
    reread_authentication,
    submit_and_follow,
)
from tests.helpers.waiting import free_ports

CLIENT = """
import sys
from pathlib import Path
from dualtoken.infra.ray_jobs import submit_and_follow
address, name, entrypoint, folder, receipt = sys.argv[1:]
submit_and_follow(address, name=name, entrypoint=entrypoint, working_dir=folder, env={}, is_done=Path(receipt).exists)
"""


def test_a_client_that_was_killed_finds_its_job_again(dashboard: str, tmp_path: Path) -> None:
    folder, receipt, starts = tmp_path / "code", tmp_path / "receipt", tmp_path / "starts"
    folder.mkdir()
    for path in (".env", "server.pem", "data/big", "pipelines/data/kept", "main.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    script = f"echo start >> {starts}; find . -type f | sort; for i in $(seq 1 10); do echo line $i; sleep 0.4; done; touch {receipt}"
    client = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            CLIENT,
            dashboard,
            "killed",
            f"bash -c {shlex.quote(script)}",
            str(folder),
            str(receipt),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "submitted killed-a1\n"
    while "line 2" not in client.stdout.readline():
        pass
    client.kill()
    client.communicate()

    lines: list[str] = []
    outcome = _submit(dashboard, "killed", script, folder, receipt.exists, lines.append)

    assert outcome.done
    assert (outcome.exit_code, outcome.submission_id) == (0, "killed-a1")
    assert starts.read_text() == "start\n"
    assert [job.submission_id for job in JobSubmissionClient(dashboard).list_jobs()] == ["killed-a1"]
    assert lines[0] == "following killed-a1, which is running already"
    output = [
        line
        for line in lines[1:]
        if not ("Runtime env is setting up" in line or line.startswith("Running entrypoint"))
    ]
    # What must not leave the machine did not; and each line came once.
    assert output == ["./main.py", "./pipelines/data/kept", *(f"line {i}" for i in range(1, 11))]


def test_receipts_decide_not_the_status_of_the_job(dashboard: str, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt"
    without = _submit(dashboard, "liar", "true", tmp_path, receipt.exists)
    assert (without.done, without.exit_code, without.submission_id) == (False, 1, "liar-a1")

    despite = _submit(dashboard, "liar", f"touch {receipt}; exit 9", tmp_path, receipt.exists)
    assert (despite.done, despite.exit_code, despite.submission_id) == (True, 0, "liar-a2")
    assert JobSubmissionClient(dashboard).get_job_info("liar-a2").driver_exit_code == 9

    assert _submit(dashboard, "liar", "false", tmp_path, receipt.exists) == JobOutcome(done=True, exit_code=0)


@pytest.mark.parametrize(("status", "exit_code", "last"), [(75, 0, "a2"), (2, 2, "a1")])
def test_only_what_may_pass_is_tried_again(
    dashboard: str, tmp_path: Path, status: int, exit_code: int, last: str
) -> None:
    tried, receipt = tmp_path / "tried", tmp_path / "receipt"
    script = f"if [ -e {tried} ]; then touch {receipt}; else touch {tried}; exit {status}; fi"
    outcome = _submit(dashboard, f"again{status}", script, tmp_path, receipt.exists, max_attempts=2)
    assert (outcome.exit_code, outcome.submission_id) == (exit_code, f"again{status}-{last}")


@pytest.mark.slow
def test_dropped_connections_lose_and_double_no_line(dashboard: str, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt"
    proxy = _Proxy(int(dashboard.rpartition(":")[2]))
    lines: list[str] = []

    def print_line(line: str) -> None:
        lines.append(line)
        if line in {"line 2", "line 8"}:
            proxy.drop(seconds=1.5)

    script = f"for i in $(seq 1 10); do echo line $i; sleep 0.4; done; touch {receipt}"
    outcome = _submit(f"127.0.0.1:{proxy.port}", "dropped", script, tmp_path, receipt.exists, print_line)
    assert outcome.done
    assert proxy.dropped >= 2
    assert [line for line in lines if line.startswith("line")] == [f"line {i}" for i in range(1, 11)]


def test_a_wrong_or_missing_token_is_refused(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RAY_AUTH_TOKEN", "wrong" * 8), ("RAY_AUTH_MODE", "disabled")):
        monkeypatch.setenv(name, value)
        with pytest.raises(AuthenticationRefused) as refused:
            _submit(dashboard, "stranger", "true", tmp_path, lambda: False)
        assert refused.value.exit_code == 2
        assert "wrongwrong" not in str(refused.value)
    monkeypatch.undo()
    reread_authentication()
    assert "stranger-a1" not in [job.submission_id for job in JobSubmissionClient(dashboard).list_jobs()]


def test_a_cluster_that_does_not_answer_is_a_temporary_failure(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnreachable, match="no Ray dashboard answers") as unreachable:
        _submit(f"127.0.0.1:{free_ports(1)[0]}", "nobody", "true", tmp_path, lambda: False)
    assert unreachable.value.exit_code == 75


@pytest.mark.parametrize(
    "address", ["", "auto", "local", "ray://127.0.0.1:10001", "http://user:word@127.0.0.1:8265", "127.0.0.1"]
)
def test_an_address_that_names_no_dashboard_is_an_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="names no Ray dashboard"):
        _submit(address, "x", "true", tmp_path, lambda: False)


def test_a_secret_in_the_environment_of_a_job_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY"):
        submit_and_follow(
            "h:1",
            name="x",
            entrypoint="true",
            working_dir=tmp_path,
            env={"AWS_SECRET_ACCESS_KEY": "s"},
            is_done=lambda: False,
        )


def test_a_large_working_dir_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, mebibytes in (("weights.bin", 101), ("data/excluded.bin", 300)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(mebibytes * 2**20)
    with pytest.raises(ValueError, match=r"holds 101 MiB.*weights\.bin \(101 MiB\)$"):
        _submit("127.0.0.1:1", "x", "true", tmp_path, lambda: False)


class _Proxy:
    """A TCP relay whose connections can be cut."""

    def __init__(self, target: int) -> None:
        self._target, self._pairs, self._closed_until = target, list[socket.socket](), 0.0
        self.dropped = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self, seconds: float) -> None:
        """Cut every connection, and each new one for some seconds."""
        self._closed_until = time.monotonic() + seconds
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.dropped += 1
        self._pairs.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            if time.monotonic() < self._closed_until:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _submit(
    address: str,
    name: str,
    script: str,
    folder: Path,
    is_done: Callable[[], bool],
    print_line: Callable[[str], None] = print,
    max_attempts: int = 1,
) -> JobOutcome:
    entrypoint = f"bash -c {shlex.quote(script)}"
    return submit_and_follow(
        address,
        name=name,
        entrypoint=entrypoint,
        working_dir=folder,
        env={},
        is_done=is_done,
        print_line=print_line,
        max_attempts=max_attempts,
    )
