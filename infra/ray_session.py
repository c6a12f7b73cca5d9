"""Ray sessions: a local cluster for the length of a `with` block, or a connection to one that runs already.

The engine is an implementation detail of a stage, so a session leaves no trace: no process, no file, no
variable.
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import grpc
import ray
from ray._private import ray_constants, worker
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import (  # Cython
    AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]
    Config,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.infra.ray_reaper import end_users

LOCAL = "local"
"""Address of a cluster that the session starts and ends."""
EXIT_PREEMPTED = 143
FOLDER_PREFIX = "dualtoken-ray-"
KEEP_FAILED_DAYS = 7
"""Days that Ray's logs of a failed session are kept."""

_HOST_PORT = re.compile(r"^(?:\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})$")
_LONGEST_BASE = 20
"""Characters of a session folder's parent; Ray adds up to 87 for its sockets, and Linux allows 107 in all."""
_ANSWER_SECONDS = 10.0
"""Time that a cluster has to answer before it counts as unreachable."""

_log = logging.getLogger(__name__)


class ClusterUnreachable(ConnectionError):
    """No Ray cluster answers at an address; that may pass."""

    exit_code = 75


class AuthenticationRefused(PermissionError):
    """A Ray cluster wants a token that this process does not have, or has a wrong one of."""

    exit_code = 2

    def __init__(self, address: str) -> None:
        super().__init__(
            f"the Ray cluster at {address} refused this token, or the lack of one: set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
        )


@contextmanager
def ray_session(
    address: str,
    *,
    num_cpus: int | None = None,
    object_store_mb: int = 256,
    worker_setup: Callable[[], None] | None = None,
    quiet: bool = True,
) -> Iterator[None]:
    """Connect this process to Ray for the length of a `with` block.

    `address` is `local`, for a cluster of its own with token authentication on. It ends with the block, with
    this process, or with SIGTERM (then SystemExit(143), unless the caller handles the signal). Else `address`
    is the host:port of a cluster that runs already, which is left running.

    `num_cpus` (all, if None) and `object_store_mb` (MiB) are for the local cluster only. `worker_setup`, a
    function of an installed module, runs once in each worker process, before its first task. `quiet` drops
    Ray's own log lines; what workers print is forwarded either way.

    Enter from the main thread: the cluster ends with the thread that starts it, and only the main one gets
    signals.

    Raises ValueError for an address that names no cluster, or for `local` inside a Ray job, RuntimeError
    where this process is connected already, and for a named cluster ClusterUnreachable or
    AuthenticationRefused.
    """
    _check_address(address)
    if ray.is_initialized():
        raise RuntimeError("this process is connected to Ray already: end that session first")
    options: dict[str, Any] = {"logging_level": logging.INFO, "log_to_driver": True}
    if quiet:
        options["logging_level"] = logging.WARNING
    if worker_setup is not None:
        options["runtime_env"] = {"worker_process_setup_hook": worker_setup}
    with environment(_variables(address)):
        if address != LOCAL:
            _check_answers(address)
            with _connection(address=address, **options):
                yield
            return
        with (
            _session_folder() as folder,
            _connection(
                address=LOCAL,
                num_cpus=num_cpus,
                object_store_memory=object_store_mb * 2**20,
                include_dashboard=False,
                _temp_dir=str(folder),
                **options,
            ),
        ):
            yield


def _check_address(address: str) -> None:
    if address == LOCAL:
        job_address = current_job_address()
        if job_address:
            raise ValueError(
                f"address=local inside a job of the Ray cluster {job_address}: "
                "set it to current_job_address()"
            )
        return
    match = _HOST_PORT.match(address)
    if match is None or not 0 < int(match[1]) < 65536:
        raise ValueError(
            f"address={address!r} names no Ray cluster: "
            "set it to local, or to host:port such as 10.0.0.5:6379"
        )


def _check_answers(address: str) -> None:
    """Raise `ClusterUnreachable` or `AuthenticationRefused` where a cluster does not answer."""
    # Left to itself, ray.init() tries a dead address for minutes, and repeats a wrong token for 20 s, with a
    # warning each.
    with cast("grpc.Channel", init_grpc_channel(address)) as channel:
        try:
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
                gcs_service_pb2.GetClusterIdRequest(),  # pyright: ignore[reportAttributeAccessIssue]  # generated
                timeout=_ANSWER_SECONDS,
            )
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue]  # every RpcError of a call has it
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationRefused(address) from None
            raise ClusterUnreachable(
                f"no Ray cluster answers at {address} ({code.name}): "
                "is it running, and the port that of its GCS?"
            ) from None


def _variables(address: str) -> dict[str, str]:
    """Return the environment variables that Ray reads, for this process and those that it starts."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about a default of a later Ray
    }
    if address == LOCAL:
        variables["RAY_AUTH_MODE"] = "token"
        if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # A token in the environment keeps Ray from writing one to the home folder.
            variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif "RAY_AUTH_MODE" not in os.environ:
        has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
        variables["RAY_AUTH_MODE"] = "token" if has_token else "disabled"
    return variables


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables, and put all of Ray's back afterwards: ray.init() sets some of its own."""

    def is_restored(name: str) -> bool:
        return name.startswith("RAY_") or name in variables or name == "PYTHONBREAKPOINT"

    before = {name: value for name, value in os.environ.items() if is_restored(name)}
    os.environ.update(variables)
    reread_authentication()
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            if is_restored(name):
                del os.environ[name]
        os.environ.update(before)
        reread_authentication()


def is_cluster_own() -> bool:
    """Tell whether the cluster of the session is one that this process started: one node, and it stays so."""
    node = worker.global_worker.node
    return node is not None and node.is_head()


def reread_authentication() -> None:
    """Apply a change of RAY_AUTH_MODE or of the token in this process's environment."""
    # Ray caches mode and token for the process: without this a second session would send the first one's
    # token.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _connection(**options: Any) -> Iterator[None]:  # noqa: ANN401  # those of ray.init()
    """Run ray.init() and ray.shutdown(), with the caller's SIGTERM handler instead of Ray's."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler_before = None
    if in_main_thread:
        handler_before = signal.getsignal(signal.SIGTERM)
    try:
        # Else a native handler of Ray's stands in for a moment, and a SIGTERM ends this process on the spot.
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
        try:
            ray.init(**options)
        except SystemExit:  # Ray's own handler, which ray.init() installs first of all, exits with status 15
            raise SystemExit(EXIT_PREEMPTED) from None
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray gives this error no class of its own
                raise
            raise ClusterUnreachable(
                "the local Ray cluster did not start in 30 s: this machine is too busy"
            ) from None
        if in_main_thread and handler_before in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, _exit_preempted)
        elif in_main_thread:
            signal.signal(signal.SIGTERM, handler_before)
        yield
    finally:
        ray.shutdown(wait_for_processes=True)
        if in_main_thread:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler_before is None else handler_before)


def _exit_preempted(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_PREEMPTED)


@contextmanager
def _session_folder() -> Iterator[Path]:
    """Make a fresh folder for Ray's sockets and logs; it is removed, unless the block fails."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > _LONGEST_BASE:
        base = Path("/tmp")  # noqa: S108  # mkdtemp makes a private folder in it
    remove_stale_folders(base)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))
    with (folder / "owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with _reaper(folder):
                yield folder
        except Exception:
            (folder / "failed").touch()
            _log.warning(
                "Ray's logs of the failed session are kept for %d days in %s", KEEP_FAILED_DAYS, folder
            )
            raise
        finally:
            if not (folder / "failed").exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _reaper(folder: Path) -> Iterator[None]:
    """Start a process that ends the cluster if this one is killed."""
    # By path and isolated: it must start in no time, and work whatever this process's environment is.
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("ray_reaper.py")), str(folder)]
    # In a session of its own, so that Ctrl-C in a terminal does not reach it.
    with subprocess.Popen(  # noqa: S603  # all of the command is ours
        command, stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            with suppress(BrokenPipeError):
                process.stdin.write(b".")
                process.stdin.flush()
            end_users(str(folder))


def remove_stale_folders(base: Path) -> None:
    """Remove the folders of sessions that were killed, and of failed ones after some days."""
    for folder in base.glob(f"{FOLDER_PREFIX}*"):
        # Another session may remove the same folder, or another user may own it: neither is our concern.
        with suppress(OSError), (folder / "owner.lock").open("r+") as lock:
            # A lock, since a pid may be taken again or belong to another container with the same /tmp.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_kept(folder / "failed"):
                shutil.rmtree(folder)


def _is_kept(failed: Path) -> bool:
    """Tell whether a session's folder has the mark of a failure, and that is recent."""
    return failed.exists() and time.time() - failed.stat().st_mtime <= KEEP_FAILED_DAYS * 86_400
