"""`dualtoken submit`: a stage, or an evaluation, as a job on a running Ray cluster."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dualtoken.jobs.evaluation_commands import (
    EvaluatedArgument,
    EvaluationOption,
    KeyOption,
    ProtocolsOption,
    ResultsOption,
    SetsOption,
    StageOption,
    TeacherOption,
    find_subject,
    open_evaluation,
)
from dualtoken.jobs.options import CorpusOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe, print_line
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stages import commands, get_stage

if TYPE_CHECKING:
    from dualtoken.infra.ray_jobs import JobOutcome

EVALUATE = "evaluate"
DashboardOption = Annotated[
    str, typer.Option("--address", help="The cluster's dashboard, such as http://127.0.0.1:8265.")
]
AttemptsOption = Annotated[
    int, typer.Option("--attempts", min=1, help="Jobs to start at most, where a failure may pass.")
]


class _Submissions(TyperGroup):
    """What can be submitted, by name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:  # noqa: ANN401
        """Find a stage's command, or `evaluate`; raises `UserError` for any other name."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UserError(f"submit {name}: no such stage: use one of {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Submissions,
    no_args_is_help=True,
    help="Run a stage, or an evaluation, on a running Ray cluster, follow its log, and exit by its receipts, "
    "or by the evaluation's summary. A second call follows the first one's job. The cluster must reach the "
    "root, and all that is read, too.",
)


def _submit_stage(stage: str) -> Callable[..., None]:
    """Return the function that submits a stage."""

    def submit(
        recipe: RecipeArgument,
        address: DashboardOption,
        overrides: SetOption = None,
        root: RootOption = None,
        corpus: CorpusOption = None,
        attempts: AttemptsOption = 1,
    ) -> None:
        settings = open_recipe(recipe, overrides, root)
        check_corpora(settings.corpora, corpus)
        # Brings Ray: a mistake in the recipe must not wait for it.
        from dualtoken.pipelines.runtime.submit import submit_stage  # noqa: PLC0415

        outcome = submit_stage(stage, settings, address, print_line, corpora=corpus, attempts=attempts)
        _end(stage, outcome)

    return submit


def _submit_evaluation(
    model: EvaluatedArgument,
    address: DashboardOption,
    sets: SetsOption = None,
    protocols: ProtocolsOption = None,
    evaluation: EvaluationOption = "evaluation-scenes",
    teacher: TeacherOption = None,
    stage: StageOption = "train",
    keys: KeyOption = None,
    root: ResultsOption = None,
    attempts: AttemptsOption = 1,
) -> None:
    """Measure a model on sets by protocols."""
    config = open_evaluation(evaluation, keys, root, sets, protocols)
    with find_subject(model, stage, teacher) as place:
        from dualtoken.pipelines.evaluation.submit_evaluation import submit_evaluation  # noqa: PLC0415

        outcome = submit_evaluation(config, place, address, print_line, attempts=attempts)
    _end(EVALUATE, outcome)


def _end(what: str, outcome: "JobOutcome") -> None:
    """Say how a job ended, and leave by its exit code."""
    result = "done" if outcome.done else f"not done: {outcome.message}"
    print_line(f"{what}: {result} ({outcome.submission_id or 'nothing to submit'})")
    raise typer.Exit(outcome.exit_code)


for _name in commands():
    app.command(_name, help=get_stage(_name).help)(_submit_stage(_name))
app.command(EVALUATE)(_submit_evaluation)
