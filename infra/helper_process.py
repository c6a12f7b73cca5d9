"""A process beside this one that works on untrusted data, may be ended at any moment, and is started again.

It answers one request at a time, bytes for bytes, and lives on between them. Its time is counted in seconds
of CPU, so that a busy machine ends no request. A request that ends it, by a crash or by its time, costs that
request alone.

The target is named `package.module:function`; the function is called once, imports what takes time, and
returns the one that makes an answer's bytes of a request's.
"""

import atexit
import errno
import importlib
import os
import select
import signal
import struct
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from dualtoken.infra.machine_trouble import is_machine_trouble

_REQUEST = struct.Struct("<dQ")
"""Head of a request: seconds of CPU, bytes that follow."""
_ANSWER = struct.Struct("<cQ")
"""Head of an answer: its kind, bytes that follow."""
_READY, _DONE, _MACHINE, _BUG, _GREEDY = b"r", b"d", b"m", b"b", b"g"
_FAIR_SHARE = 2**31
"""Memory of a sound request at most, bytes. Where so much is to be had, one that lacked some asked more."""
_WALL_PER_CPU = 20
"""A request that gets less than this share of a CPU has met a machine that does not answer."""
_WALL_SECONDS = 60
"""Time that each request may take beside that of its CPU, seconds."""
_START_SECONDS = 600
_OUT_OF_TIME = -signal.SIGPROF


class RequestTooSlow(Exception):
    """A request took more CPU time than it may; the process that worked on it was ended."""


class RequestCrashed(Exception):
    """A request ended the process that worked on it, and the next one, too."""


class HelperProcess:
    """One such process, to be used by one thread at a time."""

    def __init__(self, target: str) -> None:
        """Start the process; raises OSError where it does not come up."""
        program = f"from dualtoken.infra.helper_process import serve; serve({target!r})"
        # A session of its own: a Ctrl-C of the terminal is for whoever waits for the answer.
        self._process = subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        kind, _ = self._read_answer(_START_SECONDS)
        if kind != _READY:
            raise OSError(f"a helper process did not start: it ended with {self._process.wait()}")

    def ask(self, request: bytes, cpu_seconds: float) -> bytes:
        """Return the answer to a request.

        Raises `RequestTooSlow`, `RequestCrashed` where this process ended, OSError for the machine's own
        trouble, and RuntimeError for a bug of the target.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            _write(self._process.stdin.fileno(), _REQUEST.pack(cpu_seconds, len(request)), request)
        kind, answer = self._read_answer(cpu_seconds * _WALL_PER_CPU + _WALL_SECONDS)
        if kind == _DONE:
            return answer
        if kind == _MACHINE:
            raise OSError(errno.ENOMEM, answer.decode())
        if kind == _BUG:
            raise RuntimeError(answer.decode())
        if kind == _GREEDY:
            raise RequestCrashed("asked for more memory than there is")
        code = self._process.wait()
        if code == _OUT_OF_TIME:
            raise RequestTooSlow(f"not done in {cpu_seconds:g} s")
        if code >= 0:
            raise OSError(f"a helper process ended with {code}")
        raise RequestCrashed(f"ended by {signal.Signals(-code).name}")

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_answer(self, seconds: float) -> tuple[bytes, bytes]:
        """Return an answer's kind and content; no kind where the process ended."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(seconds * 1000):
            self._process.kill()
            raise TimeoutError(f"a helper process gave no answer in {seconds:g} s: the machine is overloaded")
        head = _read(self._process.stdout.fileno(), _ANSWER.size)
        if head is None:
            return b"", b""
        kind, size = _ANSWER.unpack(head)
        content = _read(self._process.stdout.fileno(), size)
        if content is None:
            return b"", b""
        return kind, bytes(content)


_idle: dict[str, list[HelperProcess]] = defaultdict(list)
"""Processes that wait for a request, by target; they end with this process."""


def ask(target: str, request: bytes, cpu_seconds: float) -> bytes:
    """Return a target's answer to a request, from a process that is kept for the next one; by any thread.

    A request that crashes its process is tried once more, since the system ends processes for others' use of
    memory, too. Raises what `HelperProcess.ask` does.
    """
    try:
        return _ask_once(target, request, cpu_seconds)
    except RequestCrashed:
        return _ask_once(target, request, cpu_seconds)


def _ask_once(target: str, request: bytes, cpu_seconds: float) -> bytes:
    try:
        helper = _idle[target].pop()
    except IndexError:
        helper = HelperProcess(target)
    try:
        answer = helper.ask(request, cpu_seconds)
    except BaseException:
        helper.end()
        raise
    _idle[target].append(helper)
    return answer


@atexit.register
def _end_idle() -> None:
    for helpers in _idle.values():
        for helper in helpers:
            helper.end()
    _idle.clear()


# The processes of whoever forked are not its child's to use.
os.register_at_fork(after_in_child=_idle.clear)


def serve(target: str) -> None:
    """Answer requests until the other side is gone; the helper process's own program."""
    # It may be gone at any moment, such as before this process has begun: that is an end like any other.
    with suppress(BrokenPipeError):
        _serve(target)


def _serve(target: str) -> None:
    requests, answers = os.dup(0), os.dup(1)
    module, _, name = target.partition(":")
    handle = getattr(importlib.import_module(module), name)()
    _be_killed_first()
    _write(answers, _ANSWER.pack(_READY, 0))
    # What libraries print of hostile data is for nobody.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    while (head := _read(requests, _REQUEST.size)) is not None:
        cpu_seconds, size = _REQUEST.unpack(head)
        request = _read(requests, size)
        if request is None:
            return
        # Unhandled, the timer's signal ends the process, also within a library's loop.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        kind, answer = _answer(handle, bytes(request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, _ANSWER.pack(kind, len(answer)), answer)


def _answer(handle: Callable[[bytes], bytes], request: bytes) -> tuple[bytes, bytes]:
    try:
        return _DONE, handle(request)
    except Exception as error:  # noqa: BLE001  (raised again on the other side)
        if isinstance(error, MemoryError) and _has_memory():
            return _GREEDY, b""
        if is_machine_trouble(error):
            return _MACHINE, f"{type(error).__name__}: {error}".encode()
        return _BUG, traceback.format_exc().encode()


def _has_memory() -> bool:
    """Tell whether a fair share of memory is to be had; none of it is touched."""
    try:
        bytearray(_FAIR_SHARE)
    except MemoryError:
        return False
    return True


def _be_killed_first() -> None:
    """Ask the system to end this process before the one that it helps, where memory runs out."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")


def _write(descriptor: int, *parts: bytes) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, size: int) -> bytearray | None:
    """Read so many bytes; None where the other side ended before."""
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        num_bytes = os.readv(descriptor, [rest])
        if not num_bytes:
            return None
        rest = rest[num_bytes:]
    return content
