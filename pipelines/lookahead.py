"""Does many small things at once, such as reading a file of each of a corpus's shards, and holds few results at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = 16


def map_ahead(call: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """Yield `call(item)` in the items' order, done by threads at most `threads` ahead; an error in one is raised here.

    No thread is left when the last one was taken, or an error was raised.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        for item in items:
            if len(waiting) == threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(call, item))
        while waiting:
            yield waiting.popleft().result()


def map_missing(
    call: Callable[[Item], Result], items: Sequence[Item], is_at_hand: Callable[[Item], bool], threads: int = THREADS
) -> Iterator[Result]:
    """Yield `call(item)` in the items' order, by threads unless all are at hand: where nothing is waited for, they only cost."""
    return map(call, items) if all(map(is_at_hand, items)) else map_ahead(call, items, threads)
