"""The `dualtoken` command."""

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from dualtoken.infra.storage import Store
from dualtoken.jobs.convert import convert
from dualtoken.jobs.exits import typed_exit
from dualtoken.jobs.maintenance_commands import explain, forget, gc
from dualtoken.jobs.model_commands import export, reconstruct, tokenize
from dualtoken.jobs.options import AddressOption, InProcessOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import open_recipe, print_line
from dualtoken.jobs.stage_command import stage_command
from dualtoken.jobs.status_tables import SAMPLED_RECEIPTS, plan_table, show, status_tables
from dualtoken.jobs.submit import submit
from dualtoken.jobs.token_commands import card, export_tokens, inspect
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, UserError
from dualtoken.pipelines.maintenance.findings import VerifiedFolder
from dualtoken.pipelines.maintenance.repair import in_order_of_work
from dualtoken.pipelines.maintenance.repair import repair as repair_stage
from dualtoken.pipelines.maintenance.verify import verify as verify_folders
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.plan import Planner

Look = Callable[[str], Iterable[VerifiedFolder]]
"""Checks the stages' folders at or below a path."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One vision tokenizer with two vocabularies: from URL tables to token shards, as Ray jobs.",
)

STAGES = {
    "scenes": "Make the embedded corpus of synthetic scenes, for recipes that name it.",
    "download": "URL tables to image shards, with a ledger row per input row.",
    "teacher": "Train, fetch or adopt the language-aligned teacher.",
    "filter": "Score every sample, then decide by the recipe's rules.",
    "targets": "Compute what the teacher says of each kept sample.",
    "train": "Train the dual tokenizer.",
    "pretokenize": "Turn corpora into token shards, index and manifest.",
    "report": "Make one HTML page of the whole run.",
}

for _name, _help in STAGES.items():
    app.command(_name, help=_help, rich_help_panel="Stages, one at a time")(stage_command(_name))


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    root: RootOption = None,
    address: AddressOption = None,
    in_process: InProcessOption = False,
) -> None:
    """Run every stage that is not done, in order, as one Dagster job in this process."""
    settings = open_recipe(recipe, overrides, root, address)
    planner = Planner(settings)
    if all(planned.manifest for planned in planner.plan()):
        print_line("nothing to do: every stage is done")
    else:
        planner.require_enough_rows()
        from dualtoken.pipelines.workflow.run import run_workflow  # noqa: PLC0415  (importing Dagster takes a second)

        with open_executor(settings.cluster, in_process=in_process) as executor:
            run_workflow(settings, executor, print_line)
    report = next(Planner(settings).step("report"))
    assert report.job is not None
    print_line(f"report: {report.job.store().path('report.html')}")


app.command()(submit)
for _command in (convert, tokenize, reconstruct, export):
    app.command(rich_help_panel="A saved tokenizer")(_command)

for _name, _command in {"inspect": inspect, "export-tokens": export_tokens, "card": card}.items():
    app.command(_name, rich_help_panel="Token datasets")(_command)
for _command in (explain, forget, gc):
    app.command(rich_help_panel="Upkeep")(_command)


@app.command()
def plan(recipe: RecipeArgument, overrides: SetOption = None, root: RootOption = None) -> None:
    """Print the stages, their units done and to do, and the bytes expected; runs nothing."""
    planner = Planner(open_recipe(recipe, overrides, root))
    show(plan_table(planner.plan()))
    planner.require_enough_rows()


@app.command()
def status(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    root: RootOption = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read every receipt of an unfinished stage, however many.")
    ] = False,
) -> None:
    """Print what each stage has done: units, samples by status and reason, bytes, seconds of work; and what encoding waited for."""
    for table in status_tables(
        Planner(open_recipe(recipe, overrides, root)).plan(), None if exact else SAMPLED_RECEIPTS
    ):
        show(table)


@app.command()
def verify(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A run's root, a corpus, or one stage's folder; a path or URL."),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Run again the units whose files are not as committed.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Look at every row too, and encode a sample of them again.")
    ] = False,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Rows of a token dataset that --deep encodes again.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Which rows --deep chooses.")] = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            max=1,
            help="Share of a row's codes that may differ, made on another device.",
        ),
    ] = 0.0,
    in_process: InProcessOption = False,
) -> None:
    """Read datasets against their receipts and name every missing, extra, truncated or altered file.

    Folders that are unfinished, and as committed so far, are named and no failure, unless PATH is one.
    """
    look = _deep(sample, seed, tolerance) if deep else verify_folders
    here = Store(path).url
    damaged = [
        checked
        for checked in look(path)
        if not _report(checked) and not (checked.is_sound and checked.folder != here)
    ]
    if damaged and repair:
        damaged = _repair_all(path, damaged, look, in_process=in_process)
    if damaged:
        raise typer.Exit(ExitCode.BUG)


def _deep(sample: int, seed: int, tolerance: float) -> Look:
    from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify  # noqa: PLC0415  (PyTorch takes seconds)

    settings = DeepSettings(sample, seed, tolerance)
    return lambda path: (deep_verify(checked, settings, print_line) for checked in verify_folders(path))


def _report(checked: VerifiedFolder) -> bool:
    for finding in checked.findings:
        print_line(str(finding))
    if not checked.findings:
        print_line(
            f"{checked.folder}: {pluralized(checked.files, 'file')}, {checked.bytes:,} bytes, all as committed"
        )
    return not checked.findings


def _repair_all(
    path: str, damaged: list[VerifiedFolder], look: Look, *, in_process: bool
) -> list[VerifiedFolder]:
    with open_executor(ClusterConfig(), in_process=in_process) as executor:
        for one in in_order_of_work(damaged):
            try:
                repair_stage(one, executor, print_line)
            except (UserError, UnitsFailed) as error:  # said, and the other folders are repaired all the same
                print_line(f"{one.folder}: not repaired: {error}")
    folders = {one.folder for one in damaged}
    return [checked for checked in look(path) if checked.folder in folders and not _report(checked)]


def main() -> None:
    """Run the command line; see `pipelines.errors.ExitCode` for what it exits with."""
    with typed_exit():
        app()


if __name__ == "__main__":
    main()
