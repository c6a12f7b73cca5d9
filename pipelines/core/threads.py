"""Background threads: calls made in order beside the caller, and calls prefetched with bounded read-ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

MAX_WAITING_CALLS = 2
"""Calls that run or wait while the caller goes on; each keeps its arguments in memory."""
THREADS = 16
"""Default number of prefetching threads."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class BackgroundThread:
    """Runs callables in order on one background thread, with a bounded queue.

    With `threaded=False` there is no thread: each call is made at once, in the caller's.
    """

    def __init__(self, *, threaded: bool) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if threaded:
            self._pool = ThreadPoolExecutor(1, "beside")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call after those before it.

        Waits while the queue is full, and raises the error of an earlier call.
        """
        if self._pool is None:
            call()
            return
        while self._waiting and (self._waiting[0].done() or len(self._waiting) == MAX_WAITING_CALLS):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise

    def finish(self) -> None:
        """Wait until every call is made; raises the first error of one."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish. After an error of the block, or of a call, calls that were not begun are dropped."""
        try:
            if error is None:
                self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS, ahead: int | None = None
) -> Iterator[Result]:
    """Yield `call(item)` in the items' order, prefetched by threads; raises the error of a call at its turn.

    At most `ahead` calls, by default one for each thread, run or wait while the caller holds a result. No
    thread is left once the last result was taken, an error was raised, or the caller has stopped.
    """
    limit = threads
    if ahead is not None:
        limit = ahead
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_ahead_unless_ready(
    call: Callable[[Item], Result],
    items: Sequence[Item],
    is_ready: Callable[[Item], bool],
    threads: int = THREADS,
) -> Iterator[Result]:
    """Yield `call(item)` in the items' order; threads prefetch unless all items are ready.

    Where no call has to wait, threads would only add their cost.
    """
    if all(map(is_ready, items)):
        return map(call, items)
    return map_ahead(call, items, threads)
