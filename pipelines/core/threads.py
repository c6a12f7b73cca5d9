"""Background threads: calls in order beside the caller, and many calls at once with bounded read-ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

MAX_WAITING_CALLS = 2
"""Made or waiting while the caller goes on; each holds what it was given."""


class BackgroundThread:
    """Makes calls one after the other in a thread of its own, or, not `threaded`, at once and in the caller's."""

    def __init__(self, *, threaded: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "beside") if threaded else None
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def submit(self, call: Callable[[], None]) -> None:
        """Have a call made after those before it; waits where too many do, and raises the error of an earlier one."""
        if self._pool is None:
            call()
            return
        while self._waiting and (self._waiting[0].done() or len(self._waiting) == MAX_WAITING_CALLS):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._call, call))

    def _call(self, call: Callable[[], None]) -> None:
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
        """Finish; after an error of the block, or of a call, what was not begun is left."""
        try:
            if error is None:
                self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


Item = TypeVar("Item")


Result = TypeVar("Result")


THREADS = 16


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS, ahead: int | None = None
) -> Iterator[Result]:
    """Yield `call(item)` in the items' order, prefetched by threads; an error in one is raised here.

    At most `ahead` calls, by default one for each thread, run or wait while the caller holds a result. No thread is
    left once the last result was taken, an error was raised, or the caller has stopped.
    """
    limit = threads if ahead is None else ahead
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
    is_at_hand: Callable[[Item], bool],
    threads: int = THREADS,
) -> Iterator[Result]:
    """Yield `call(item)` in the items' order, by threads unless all are at hand: where nothing is waited for, they only cost."""
    return map(call, items) if all(map(is_at_hand, items)) else map_ahead(call, items, threads)
