"""`dualtoken submit`: a stage as a job on a running Ray cluster."""

from typing import Annotated

import typer

from dualtoken.jobs.options import CorpusOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe, print_line
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stages import commands

StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(commands())}.")]
DashboardOption = Annotated[
    str, typer.Option("--address", help="The cluster's dashboard, such as http://127.0.0.1:8265.")
]
AttemptsOption = Annotated[
    int, typer.Option("--attempts", min=1, help="Jobs to start at most, where a failure may pass.")
]


def submit(
    stage: StageArgument,
    recipe: RecipeArgument,
    address: DashboardOption,
    overrides: SetOption = None,
    root: RootOption = None,
    corpus: CorpusOption = None,
    attempts: AttemptsOption = 1,
) -> None:
    """Run a stage on a running Ray cluster, follow its log, and exit by its receipts.

    A second call follows the first one's job. The recipe's root must be one that the cluster reaches too.
    """
    if stage not in commands():
        raise UserError(f"submit {stage}: no such stage: use one of {', '.join(commands())}")
    settings = open_recipe(recipe, overrides, root)
    check_corpora(settings.corpora, corpus)
    # Brings Ray: a mistake in the recipe must not wait for it.
    from dualtoken.pipelines.runtime.submit import submit_stage  # noqa: PLC0415

    outcome = submit_stage(stage, settings, address, print_line, corpora=corpus, attempts=attempts)
    result = "done" if outcome.done else f"not done: {outcome.message}"
    print_line(f"{stage}: {result} ({outcome.submission_id or 'nothing to submit'})")
    raise typer.Exit(outcome.exit_code)
