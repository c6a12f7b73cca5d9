"""Runs a recipe's whole Dagster job in this process, with no server.

Dagster's records go to DAGSTER_HOME, if it is set.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.errors import Preempted, UserError
from dualtoken.pipelines.runtime.executor import Executor
from dualtoken.pipelines.workflow.assets import JOB, recipe_definitions

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration that silences Dagster's own events: stages print what they do, and an error is raised."""


def run_workflow(recipe: Recipe, executor: Executor, print_line: PrintLine) -> None:
    """Make every asset on every corpus in one run; an asset's error is raised as it is."""
    open_executor = _WithOwnSignals(executor)
    job = recipe_definitions(recipe, open_executor, print_line).resolve_job_def(JOB)
    corpora = list(recipe.corpora)
    whole_range = {ASSET_PARTITION_RANGE_START_TAG: corpora[0], ASSET_PARTITION_RANGE_END_TAG: corpora[-1]}
    with _instance() as instance:
        try:
            job.execute_in_process(tags=whole_range, run_config=QUIET, instance=instance, raise_on_error=True)
        except DagsterExecutionInterruptedError:  # of its own handlers, which are at work between the assets
            raise Preempted from None


class _WithOwnSignals:
    """Hands out an executor, with the signal handlers of before Dagster's run while it is in use.

    Dagster's raise an error that Ray's native code does not know and loses.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    @contextmanager
    def __call__(self) -> Iterator[Executor]:
        if threading.current_thread() is not threading.main_thread():
            yield self._executor
            return
        dagsters = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        try:
            yield self._executor
        finally:
            for number, handler in dagsters.items():
                signal.signal(number, handler)


def _instance() -> dg.DagsterInstance:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return dg.DagsterInstance.ephemeral()
    if not Path(home).is_absolute() or not Path(home).is_dir():
        raise UserError(
            f"DAGSTER_HOME={home} is no folder by its full path: make one and name it so, or unset it"
        )
    return dg.DagsterInstance.get()
