"""Watches that a training's steps go on: a worker that hangs says where, and ends.

A worker that waits for another one that will never come would hold its machines for good. Ended, it is
started again, from the last checkpoint.
"""

import faulthandler
import os
import sys
import tempfile
import threading
from types import TracebackType
from typing import NoReturn, Self

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.training.train_context import TrainContext

STACKS = "logs/hang-rank{rank}.txt"
"""File in the stage's folder with the stacks of a worker that hung."""
STORE_SECONDS = 10.0
"""Time to store that file in."""


class Watchdog:
    """A thread that ends the process where no step was taken for a time; the first step has ten times it."""

    def __init__(self, job: StageJob, context: TrainContext, timeout_seconds: float) -> None:
        self._job = job
        self._rank = context.rank
        self._timeout = timeout_seconds
        self._num_steps = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()

    def step_taken(self) -> None:
        """Note that a step was taken."""
        self._num_steps += 1

    def _watch(self) -> None:
        seen = self._num_steps
        # Before the first step data is opened and a network compiled.
        patience = 10 * self._timeout
        while not self._ended.wait(patience):
            if self._num_steps == seen:
                self._end(patience)
            seen = self._num_steps
            patience = self._timeout

    def _end(self, seconds: float) -> NoReturn:
        """Write all threads' stacks, and end the process at once: a thread that hangs cannot be stopped."""
        name = STACKS.format(rank=self._rank)
        print(
            f"{self._job.label}: worker {self._rank} took no step in {seconds:g} s "
            f"(train.hang_timeout_seconds): its stacks are in {self._job.folder}/{name}; it ends",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(2, all_threads=True)
        # A store may hang as well.
        storing = threading.Thread(target=self._store_stacks, args=(name,), daemon=True)
        storing.start()
        storing.join(STORE_SECONDS)
        os._exit(ExitCode.TEMPORARY)

    def _store_stacks(self, name: str) -> None:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._job.store().put_bytes(file.read(), name)
