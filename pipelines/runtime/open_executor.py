"""Opens the executor that a recipe asks for, and not before it is needed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.core.stage import UnitOutcome, Work
from dualtoken.pipelines.runtime.executor import Executor, LocalExecutor


class _RayWhenNeeded:
    """Imports Ray and joins its cluster when the first unit is to run: with nothing to do, that is spared."""

    def __init__(self, cluster: ClusterConfig, session: ExitStack) -> None:
        self._cluster = cluster
        self._session = session
        self._executor: Executor | None = None

    def run(self, work: Sequence[Work]) -> Iterable[UnitOutcome]:
        if self._executor is None:
            from dualtoken.pipelines.runtime.ray_executor import RayExecutor  # noqa: PLC0415

            self._executor = self._session.enter_context(RayExecutor(self._cluster))
        return self._executor.run(work)


@contextmanager
def open_executor(cluster: ClusterConfig, *, in_process: bool = False) -> Iterator[Executor]:
    """Yield an executor, on Ray unless `in_process`."""
    with ExitStack() as session:
        yield LocalExecutor() if in_process else _RayWhenNeeded(cluster, session)
