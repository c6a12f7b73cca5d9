"""A recipe as Dagster assets: commands are assets, corpora partitions; receipts stay the state of truth."""

import warnings
from contextlib import AbstractContextManager
from typing import Protocol

import dagster as dg

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.errors import StageFailed
from dualtoken.pipelines.runtime.executor import Executor
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import all_stages, get_stage
from dualtoken.pipelines.workflow.finished_work import finished_work_sensor
from dualtoken.pipelines.workflow.metadata import stage_metadata

JOB = "everything"


class OpenExecutor(Protocol):
    """Opens an executor for the time of one asset, or hands out one that outlives it."""

    def __call__(self) -> AbstractContextManager[Executor]:
        """Enter to get the executor."""
        ...


def recipe_definitions(recipe: Recipe, open_executor: OpenExecutor, print_line: PrintLine) -> dg.Definitions:
    """Return the assets of a recipe, the job that makes all of them and the sensor of finished ones."""
    corpora = dg.StaticPartitionsDefinition(list(recipe.corpora))
    names = asset_names(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", dg.BetaWarning
        )  # backfill_policy, which lets one run take all corpora
        assets = [_asset(name, recipe, corpora, open_executor, print_line) for name in names]
    job = dg.define_asset_job(JOB, selection=dg.AssetSelection.assets(*names))
    sensor = finished_work_sensor(recipe)
    return dg.Definitions(assets=assets, jobs=[job], sensors=[sensor], executor=dg.in_process_executor)


def asset_names(recipe: Recipe) -> list[str]:
    """Return the stages that have something to do for a recipe, in the order of a run."""
    return [stage.name for stage in all_stages() if stage.runs_on(recipe)]


def _asset(
    command: str,
    recipe: Recipe,
    corpora: dg.PartitionsDefinition[str],
    open_executor: OpenExecutor,
    print_line: PrintLine,
) -> dg.AssetsDefinition:
    stage = get_stage(command)
    per_corpus = stage.per_corpus

    @dg.asset(
        name=command,
        description=stage.help,
        deps=_upstream(command, recipe),
        partitions_def=corpora if per_corpus else None,
        backfill_policy=dg.BackfillPolicy.single_run() if per_corpus else None,
        group_name=recipe.name.replace("-", "_").replace(".", "_"),
    )
    def make(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        chosen = list(context.partition_keys) if per_corpus else None
        finished = _run(command, recipe, open_executor, print_line, chosen)
        _add_metadata(context, [planned for planned in finished if planned.stage == command])
        return dg.MaterializeResult(data_version=dg.DataVersion(_version(finished)))

    return make


def _run(
    command: str,
    recipe: Recipe,
    open_executor: OpenExecutor,
    print_line: PrintLine,
    corpora: list[str] | None,
) -> list[PlannedStage]:
    if recipe.cluster.dashboard:
        # Brings Ray, which a local run with nothing to do spares.
        from dualtoken.pipelines.runtime.submit import submit_stage  # noqa: PLC0415

        outcome = submit_stage(command, recipe, recipe.cluster.dashboard, print_line, corpora=corpora)
        if not outcome.done:
            raise StageFailed(
                f"{command}: {outcome.message} (job {outcome.submission_id})", outcome.exit_code
            )
        return list(Planner(recipe).command(command, corpora))
    with open_executor() as executor:
        return run_command(command, recipe, executor, print_line, corpora)


def _upstream(command: str, recipe: Recipe) -> list[str]:
    """Return the stages that this one reads."""
    stage = get_stage(command)
    upstream: set[str] = set()
    for corpus in stage.runs_on(recipe):
        needed = [*stage.reads(recipe, corpus), *stage.also_reads(recipe, corpus)]
        upstream.update(name for name, _ in needed)
    return [name for name in asset_names(recipe) if name in upstream]


def _add_metadata(context: dg.AssetExecutionContext, finished: list[PlannedStage]) -> None:
    """Give each partition of the asset its own numbers."""
    for planned in finished:
        if planned.job and planned.manifest:
            metadata = stage_metadata(planned.job, planned.manifest)
            context.add_asset_metadata(metadata, partition_key=planned.corpus)


def _version(finished: list[PlannedStage]) -> str:
    return "-".join(sorted(planned.job.fingerprint for planned in finished if planned.job))
