"""Runs commands: plans a stage, hands its open units to an executor, and writes manifests at the end."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.messages import PrintLine, pluralized
from dualtoken.pipelines.core.stage import UnitOutcome, Work
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.changed_code import check_code
from dualtoken.pipelines.runtime.executor import Executor, report_outcomes
from dualtoken.pipelines.runtime.finish import finish, user_warnings
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner, first_to_run
from dualtoken.pipelines.runtime.stage import Stage
from dualtoken.pipelines.runtime.stages import all_stages, commands
from dualtoken.pipelines.tokens.audit import RunningAudit


def run_command(
    command: str,
    recipe: Recipe,
    executor: Executor,
    print_line: PrintLine,
    corpora: Sequence[str] | None = None,
) -> list[PlannedStage]:
    """Run a command's stages on all corpora, or on those named; return how they stand then.

    Raises `UserError` when an earlier command has not finished, `UnitsFailed` when a unit failed.
    """
    finished: list[PlannedStage] = []
    for stage in commands()[command]:
        require_inputs(command, recipe, corpora)
        planned = list(Planner(recipe).on_corpora(stage.name, corpora))
        unfinished = [plan for plan in planned if not plan.manifest]
        check_code(planned, recipe, print_line)
        _require_budget(stage, recipe, unfinished)
        for plan in planned:
            if plan.job and plan.manifest:
                write_stage_record(plan.job, plan.identity)  # in case the file was lost
        run_planned(unfinished, executor, print_line)
        finished += Planner(recipe).on_corpora(stage.name, corpora)
    return finished


def require_inputs(command: str, recipe: Recipe, corpora: Sequence[str] | None = None) -> None:
    """Raise `UserError` when a command's stages wait for an earlier command, and name the first to run."""
    for stage in commands()[command]:
        if stage.only_with and not stage.runs_on(recipe):
            raise UserError(f"{stage.name}: the recipe {recipe.name} has no {stage.only_with}: add the key")
    stages = [stage.name for stage in commands()[command]]
    for planned in Planner(recipe).command(command, corpora):
        waits = [waiting for waiting in planned.waits_for if waiting.stage not in stages]
        if waits:
            labels = ", ".join(waiting.label for waiting in waits)
            first = first_to_run([planned])
            raise UserError(f"{planned.label} waits for {labels}: run `dualtoken {first}` first")


def _require_budget(stage: Stage, recipe: Recipe, unfinished: Sequence[PlannedStage]) -> None:
    """Raise `UserError` before a stage writes more than the recipe allows it."""
    budget = stage.budget(recipe)
    if budget is None:
        return
    for planned in unfinished:
        gigabytes = (planned.output_bytes or 0) / 1e9
        if gigabytes > budget.gigabytes:
            raise UserError(
                f"{planned.label} would take {gigabytes:.3g} GB, {budget.key}={budget.gigabytes:g}: "
                f"raise it, {budget.fix}"
            )


def run_planned(planned: Sequence[PlannedStage], executor: Executor, print_line: PrintLine) -> None:
    """Run the open units of jobs that are not blocked, then write their manifests."""
    jobs = [plan.job for plan in planned if plan.job]
    if not jobs:
        return
    work: list[Work] = []
    for plan in planned:
        if plan.job:
            if plan.job.store().is_local:
                require_writable(Path(plan.job.folder), "set root to a folder that can be")
            write_stage_record(plan.job, plan.identity)
            if plan.units_to_do:
                work.append(Work(plan.job, plan.units_to_do))
    if work:
        print_line(_heading(jobs[0].stage, jobs[0].recipe, work))
    audit = RunningAudit(jobs[0].recipe.pretokenize, print_line)
    run_units(work, executor, print_line, audit.add)
    for plan in planned:
        if plan.job:
            for warning in user_warnings(finish(plan.job)):
                print_line(f"{plan.label}: {warning}")


def _heading(name: str, recipe: Recipe, work: Sequence[Work]) -> str:
    """Return the line that a stage begins with, so that one that takes minutes is not silent."""
    names = [stage.name for stage in all_stages() if stage.runs_on(recipe)]
    units = pluralized(sum(len(job_units.units) for job_units in work), "unit")
    return f"{name} (stage {names.index(name) + 1} of {len(names)}): {units} to do"


def run_units(
    work: Sequence[Work],
    executor: Executor,
    print_line: PrintLine,
    observe: Callable[[UnitOutcome], None],
) -> None:
    """Run units, and write no manifest; raises `UnitsFailed` when any failed, and what `observe` raises."""
    if not work:
        return
    _warn_of_unconditional_puts(Store(work[0].job.recipe.root), print_line)
    report_outcomes(executor.run(work), work, print_line, observe)


def _warn_of_unconditional_puts(store: Store, print_line: PrintLine) -> None:
    if not store.is_local and not store.honours_put_if_absent():
        print_line(
            f"{store.url} ignores If-None-Match: of two equal writers the last one wins, which is harmless"
        )
