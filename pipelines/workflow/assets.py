"""A recipe as Dagster assets: a command is an asset, a corpus a partition; receipts stay the state of truth."""

import warnings
from contextlib import AbstractContextManager
from typing import Protocol

import dagster as dg

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.errors import StageFailed
from dualtoken.pipelines.runtime.executor import Executor
from dualtoken.pipelines.runtime.plan import Planned, Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.steps import COMMANDS, STEPS

JOB = "everything"


class OpenExecutor(Protocol):
    """Opens an executor for the time of one asset, or hands out one that outlives it."""

    def __call__(self) -> AbstractContextManager[Executor]:
        """Enter to get the executor."""
        ...


def recipe_definitions(recipe: Recipe, open_executor: OpenExecutor, print_line: PrintLine) -> dg.Definitions:
    """Return the assets of a recipe and the job that makes all of them."""
    corpora = dg.StaticPartitionsDefinition(list(recipe.corpora))
    commands = [name for name, steps in COMMANDS.items() if STEPS[steps[0]].corpora(recipe)]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", dg.BetaWarning
        )  # of backfill_policy, which lets one run take all corpora
        assets = [_asset(name, recipe, corpora, commands, open_executor, print_line) for name in commands]
    job = dg.define_asset_job(JOB, selection=dg.AssetSelection.assets(*commands))
    return dg.Definitions(assets=assets, jobs=[job], executor=dg.in_process_executor)


def _asset(
    command: str,
    recipe: Recipe,
    corpora: dg.PartitionsDefinition[str],
    commands: list[str],
    open_executor: OpenExecutor,
    print_line: PrintLine,
) -> dg.AssetsDefinition:
    per_corpus = STEPS[COMMANDS[command][0]].per_corpus

    @dg.asset(
        name=command,
        deps=_upstream(command, recipe, commands),
        partitions_def=corpora if per_corpus else None,
        backfill_policy=dg.BackfillPolicy.single_run() if per_corpus else None,
        group_name=recipe.name.replace("-", "_").replace(".", "_"),
    )
    def make(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        chosen = list(context.partition_keys) if per_corpus else None
        finished = _run(command, recipe, open_executor, print_line, chosen)
        return dg.MaterializeResult(
            metadata=_metadata(finished), data_version=dg.DataVersion(_version(finished))
        )

    return make


def _run(
    command: str,
    recipe: Recipe,
    open_executor: OpenExecutor,
    print_line: PrintLine,
    corpora: list[str] | None,
) -> list[Planned]:
    if recipe.cluster.dashboard:
        from dualtoken.pipelines.runtime.submit import submit_stage  # noqa: PLC0415  (brings Ray, which a local run with nothing to do spares)

        outcome = submit_stage(command, recipe, recipe.cluster.dashboard, print_line, corpora=corpora)
        if not outcome.done:
            raise StageFailed(
                f"{command}: {outcome.message} (job {outcome.submission_id})", outcome.exit_code
            )
        return list(Planner(recipe).command(command, corpora))
    with open_executor() as executor:
        return run_command(command, recipe, executor, print_line, corpora)


def _upstream(command: str, recipe: Recipe, commands: list[str]) -> list[str]:
    """Return the commands whose steps this one's read."""
    reads = {
        name
        for step in COMMANDS[command]
        for corpus in STEPS[step].corpora(recipe)
        for name, _ in STEPS[step].reads(recipe, corpus)
    }
    return [other for other in commands if other != command and reads & set(COMMANDS[other])]


def _metadata(finished: list[Planned]) -> dict[str, str]:
    """Say where the outputs are and what they count."""
    return {
        one.label: f"{one.job.folder} {dict(one.manifest.counts)}"
        for one in finished
        if one.job and one.manifest
    }


def _version(finished: list[Planned]) -> str:
    return "-".join(sorted(one.job.fingerprint for one in finished if one.job))
