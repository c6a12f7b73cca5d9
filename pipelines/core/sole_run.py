"""One run at a time works in a stage's folder, where two would overwrite each other's files.

In a local folder that is a lock of the file system, which ends with its process however that ends. Elsewhere
it is a lease: a file that its owner writes anew every few seconds. A lease that nobody renews is a dead
run's, and is taken over. No clocks are compared.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dualtoken.infra.storage import Store

LOCK_FILE = "logs/running.lock"
LEASE_FILE = "logs/running.json"
RENEWED_EVERY = 5.0
"""Seconds between two renewals of a lease."""
EXPIRES_AFTER = 30.0
"""Seconds that another run watches a lease, before it takes one for abandoned that was not renewed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""


class AnotherRunError(OSError):
    """Another run works in the same folder; it will end."""


@contextmanager
def sole_run(store: Store) -> Iterator[None]:
    """Be the only run in a stage's folder for the length of the block; raises `AnotherRunError`."""
    if store.is_local:
        try:
            descriptor = _take_lock(store)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        else:
            try:
                yield
            finally:
                _release_lock(store, descriptor)
            return
    with _lease(store):
        yield


def _take_lock(store: Store) -> int:
    path = Path(store.path(LOCK_FILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode()
            os.close(descriptor)
            raise _another_run(store, owner) from None
        except OSError:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, _this_process().encode(), 0)
            return descriptor
        os.close(descriptor)  # of a run that ended just now, and removed the file


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _release_lock(store: Store, descriptor: int) -> None:
    """Remove the lock's file while the lock is held, so that nobody locks a file that is about to go."""
    Path(store.path(LOCK_FILE)).unlink(missing_ok=True)
    os.close(descriptor)


@contextmanager
def _lease(store: Store) -> Iterator[None]:
    owner = uuid.uuid4().hex
    if not store.put_if_absent(_renewed(owner), LEASE_FILE):
        _take_over(store, owner)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(store, owner, ended), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        if _read(store).get("owner") == owner:
            store.remove(LEASE_FILE)


def _take_over(store: Store, owner: str) -> None:
    """Take a lease that is there, if nobody renews it; raises `AnotherRunError` if somebody does."""
    found = _read(store)
    deadline = time.monotonic() + EXPIRES_AFTER
    while time.monotonic() < deadline and not _is_dead_here(found):
        time.sleep(RENEWED_EVERY / 5)
        if _read(store) != found:
            break
    if _read(store) == found:
        store.put_bytes(_renewed(owner), LEASE_FILE)
        time.sleep(RENEWED_EVERY / 5)  # another run may take it over at the same moment: the last one has it
    elif store.put_if_absent(_renewed(owner), LEASE_FILE):
        return  # its run ended meanwhile
    now = _read(store)
    if now.get("owner") != owner:
        raise _another_run(store, now.get("where", "another process"))


def _renew(store: Store, owner: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_EVERY):
        # The next renewal comes soon; until then a store may fail for a moment.
        with suppress(Exception):
            if _read(store).get("owner") != owner:
                return
            store.put_bytes(_renewed(owner), LEASE_FILE)


def _renewed(owner: str) -> bytes:
    lease = {
        "owner": owner,
        "where": _this_process(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "renewal": uuid.uuid4().hex,
    }
    return json.dumps(lease).encode()


def _read(store: Store) -> dict[str, Any]:
    """Return the lease; an empty one where there is none, or one cut short."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads(store.read(LEASE_FILE))
    return {}


def _is_dead_here(lease: dict[str, Any]) -> bool:
    """Tell whether a lease is of a process of this machine that has ended."""
    return lease.get("host") == socket.gethostname() and not Path(f"/proc/{lease.get('pid')}").exists()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _another_run(store: Store, owner: str) -> AnotherRunError:
    return AnotherRunError(f"another run ({owner}) is at work in {store.url}: let it end, or stop it")
