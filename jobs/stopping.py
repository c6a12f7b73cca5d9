"""Stopping by a signal: one sentence, an exit code, and no process left behind.

A signal raises an error in the main thread, whose `with` blocks release what they hold. That alone is not
enough: native code may not look at signals for minutes, and a library may swallow the exception. So a thread
beside it hears of the signal too, and ends the process where the main thread has not done so in time.

Work that ends by itself when it is asked to, such as a training, is asked first and has its own time.

Imports Python's own library only, and one file of ours that does likewise, so that a program is ready for
signals before its own imports.
"""

import atexit
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dualtoken.infra.stop_request import stop_request

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0
"""Time that the main thread has to release what it holds."""
SENTENCE = b"dualtoken: stopped; run the same command again to go on\n"


class _Stopping:
    """What this process knows of signals: one object, since signals are for the whole process."""

    def __init__(self) -> None:
        self.is_ready = False
        self.first: int | None = None
        """The first signal that came; later ones change nothing."""
        self.error: type[BaseException] | None = None
        """What a signal raises, once; where it raises nothing, it ends the process, which holds nothing."""
        self.has_raised = False
        self.stderr = -1
        """A descriptor of the standard error of the start: the usual one is silenced by a signal."""
        self.ending = threading.Lock()
        """Taken, and never released, by the thread that ends the process."""


_stopping = _Stopping()


def stop_on_signals() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP from now on, less those that the caller of this program ignores.

    Does nothing the second time, nor outside the main thread, where Python allows no handlers.
    """
    if _stopping.is_ready or threading.current_thread() is not threading.main_thread():
        return
    _stopping.is_ready = True
    # Python calls the first one that was registered last.
    atexit.register(_ignore_signals)
    _stopping.stderr = os.dup(2)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader,), name="stopping", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A forked child shares the pipe: a signal to it alone would stop this process.
    os.register_at_fork(after_in_child=_die_of_signals)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def raise_when_stopped(error: type[BaseException]) -> None:
    """Raise an error on a signal from now on; until then one ends the process at once."""
    _stopping.error = error


def end_if_stopped() -> None:
    """End the process if a signal came; to be called when the program has released what it held."""
    _stopping.error = None
    if _stopping.first is not None:
        _end(_stopping.first)


def _ignore_signals() -> None:
    """Ignore signals: the work is done and told, and Python gives up its handlers as it ends."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _note(number)
    if _stopping.error is None:
        _end(number)
    if _is_deferred(number):
        return
    if not _stopping.has_raised:
        _stopping.has_raised = True
        raise _stopping.error


def _watch(reader: int) -> None:
    """Wait for a signal, and end the process where the main thread does not."""
    number = 0
    while number not in SIGNALS:
        number = os.read(reader, 1)[0]
    _note(number)
    if _is_deferred(number):
        time.sleep(stop_request.grace_seconds)
    time.sleep(GRACE_SECONDS)
    _end(number)


def _is_deferred(number: int) -> bool:
    """Ask work that ends by itself to do so; return whether there is any. SIGINT does not wait for it."""
    return number != signal.SIGINT and stop_request.ask()


def _note(number: int) -> None:
    """Note the first signal, and silence what libraries print of their sudden end."""
    if _stopping.first is None:
        _stopping.first = number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)


def _end(number: int) -> NoReturn:
    """End the process, without waiting for its threads."""
    if not _stopping.ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending it
    _kill_children()
    first = _stopping.first or number
    with suppress(OSError):
        os.write(_stopping.stderr, SENTENCE)
    # SIGHUP is told as SIGTERM is: both are somebody's wish that the process ends.
    os._exit(130 if first == signal.SIGINT else 143)


def _kill_children() -> None:
    """Kill this process's children, but for those in a session of their own: they clean up after it."""
    children: list[str] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            children += task.read_text().split()
    for child in map(int, children):
        with suppress(OSError):
            if os.getsid(child) == os.getsid(0):
                os.kill(child, signal.SIGKILL)


def _die_of_signals() -> None:
    """Handle signals as Python does by default, in a forked child."""
    atexit.unregister(_ignore_signals)
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)
