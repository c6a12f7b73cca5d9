"""Runs commands: plans a step, hands its open units to an executor, and writes manifests when all are done."""

from collections.abc import Sequence

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.messages import PrintLine, pluralized
from dualtoken.pipelines.core.stage import Work
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.executor import Executor, report_outcomes
from dualtoken.pipelines.runtime.finish import finish, user_warnings
from dualtoken.pipelines.runtime.plan import Planned, Planner
from dualtoken.pipelines.runtime.steps import COMMANDS, STEPS
from dualtoken.pipelines.tokens.audit import watched


def run_command(
    command: str,
    recipe: Recipe,
    executor: Executor,
    print_line: PrintLine,
    corpora: Sequence[str] | None = None,
) -> list[Planned]:
    """Run a command's steps on all corpora, or on those named; return what they came to.

    Raises `UserError` when an earlier command has not finished, `UnitsFailed` when a unit failed.
    """
    finished: list[Planned] = []
    for step in COMMANDS[command]:
        require_inputs(command, recipe, corpora)
        planned = list(Planner(recipe).step(step, corpora))
        open_steps = [one for one in planned if not one.manifest]
        _check_budget(recipe, open_steps)
        for one in planned:
            if one.job and one.manifest:
                write_stage_record(one.job, one.identity)  # in case the file was lost
        run_planned(open_steps, executor, print_line)
        finished += Planner(recipe).step(step, corpora)
    return finished


def require_inputs(command: str, recipe: Recipe, corpora: Sequence[str] | None = None) -> None:
    """Raise `UserError` when a command's steps wait for an earlier command."""
    own = COMMANDS[command]
    for planned in Planner(recipe).command(command, corpora):
        if waits := [label for label in planned.waits_for if label.split()[0] not in own]:
            raise UserError(
                f"{planned.label} waits for {', '.join(waits)}: run `dualtoken {_command_of(waits[0].split()[0])}` first"
            )


def _check_budget(recipe: Recipe, planned: Sequence[Planned]) -> None:
    """Raise `UserError` before dense targets fill a disk."""
    budget = recipe.targets.dense_budget_gb
    for one in planned:
        if (
            one.step == "targets"
            and recipe.targets.dense
            and (size := (one.output_bytes or 0) / 1e9) > budget
        ):
            raise UserError(
                f"{one.label} would take {size:.3g} GB, targets.dense_budget_gb={budget:g}: raise it, "
                "or set targets.dense=false, and training runs the teacher itself"
            )


def run_planned(planned: Sequence[Planned], executor: Executor, print_line: PrintLine) -> None:
    """Run the open units of jobs that are not blocked, then write their manifests."""
    jobs = [one for one in planned if one.job]
    for one in jobs:
        assert one.job is not None
        write_stage_record(one.job, one.identity)
    work = [Work(one.job, one.units_to_do) for one in jobs if one.job and one.units_to_do]
    if work:
        print_line(_heading(work))
    run_units(work, executor, print_line)
    for one in jobs:
        assert one.job is not None
        for problem in user_warnings(finish(one.job)):
            print_line(f"{one.label}: {problem}")


def _heading(work: Sequence[Work]) -> str:
    """Return the line that a step begins with, so that one that takes minutes is not silent."""
    recipe, name = work[0].job.recipe, work[0].job.stage
    steps = [step for command in COMMANDS.values() for step in command if STEPS[step].corpora(recipe)]
    units = pluralized(sum(len(one.units) for one in work), "unit")
    return f"{name} (step {steps.index(name) + 1} of {len(steps)}): {units} to do"


def run_units(work: Sequence[Work], executor: Executor, print_line: PrintLine) -> None:
    """Run units, and write no manifest; raises `UnitsFailed` when any failed."""
    if not work:
        return
    _warn_of_unconditional_puts(Store(work[0].job.recipe.root), print_line)
    report_outcomes(watched(executor.run(work), work, print_line), work, print_line)


def _warn_of_unconditional_puts(store: Store, print_line: PrintLine) -> None:
    if not store.is_local and not store.honours_put_if_absent():
        print_line(
            f"{store.url} ignores If-None-Match: of two equal writers the last one wins, which is harmless"
        )


def _command_of(step: str) -> str:
    return next(command for command, steps in COMMANDS.items() if step in steps)
