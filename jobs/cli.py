"""The `dualtoken` command."""

from typing import Annotated

import typer

from dualtoken.jobs.call import call
from dualtoken.jobs.convert import convert
from dualtoken.jobs.evaluation_commands import compare, evaluate
from dualtoken.jobs.exits import run_program
from dualtoken.jobs.expectations import DeviceOption, expectations
from dualtoken.jobs.maintenance_commands import explain, forget, gc
from dualtoken.jobs.mllm_commands import ask, describe, generate
from dualtoken.jobs.model_commands import export, reconstruct, tokenize
from dualtoken.jobs.nightly_commands import app as nightly_app
from dualtoken.jobs.options import AddressOption, InProcessOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import open_recipe, print_line
from dualtoken.jobs.stage_command import stage_command
from dualtoken.jobs.status_tables import SAMPLED_RECEIPTS, plan_table, show, status_tables
from dualtoken.jobs.submit import app as submit_app
from dualtoken.jobs.token_commands import card, export_tokens, inspect
from dualtoken.jobs.verify import verify
from dualtoken.jobs.version import version_line
from dualtoken.pipelines.runtime.changed_code import changed_code, check_code
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.stages import all_stages, commands, get_stage

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

VersionOption = Annotated[
    bool, typer.Option("--version", is_eager=True, help="Print version, code hash and commit, and exit.")
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Read every receipt of an unfinished stage, however many.")
]


@app.callback(invoke_without_command=True)
def global_options(version: VersionOption = False) -> None:
    """One vision tokenizer with two vocabularies: from URL tables to token shards, as Ray jobs."""
    if version:
        print_line(version_line())
        raise typer.Exit


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
        check_code(planner.plan(), settings, print_line)
        print_line("nothing to do: every stage is done")
    else:
        planner.require_enough_rows()
        # Importing Dagster takes a second.
        from dualtoken.pipelines.workflow.run import run_workflow  # noqa: PLC0415

        with open_executor(settings.cluster, in_process=in_process) as executor:
            run_workflow(settings, executor, print_line)
    planner = Planner(settings)
    for stage in all_stages():
        if stage.page:
            for planned in planner.on_corpora(stage.name):
                assert planned.job is not None, "every stage is done"
                print_line(f"{planned.label}: {planned.job.store().path(stage.page)}")


def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    root: RootOption = None,
    device: DeviceOption = None,
) -> None:
    """Print the stages, their units done and to do, bytes, speed and memory expected; runs nothing."""
    settings = open_recipe(recipe, overrides, root)
    planner = Planner(settings)
    planned = list(planner.plan())
    show(plan_table(planned))
    for table_or_line in expectations(settings, planned, device):
        if isinstance(table_or_line, str):
            print_line(table_or_line)
        else:
            show(table_or_line)
    _print_changed_code(planner)
    planner.require_enough_rows()


def status(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    root: RootOption = None,
    exact: ExactOption = False,
) -> None:
    """Print what each stage has done: units, samples by status, bytes, seconds, and the encoder's waits."""
    planner = Planner(open_recipe(recipe, overrides, root))
    most = None if exact else SAMPLED_RECEIPTS
    for table in status_tables(planner.plan(), most):
        show(table)
    _print_changed_code(planner)


def _print_changed_code(planner: Planner) -> None:
    for changed in changed_code(planner.plan()):
        print_line(str(changed))


for _command in (run, plan, status, verify):
    app.command(rich_help_panel="A recipe as a whole")(_command)
app.add_typer(submit_app, name="submit", rich_help_panel="A recipe as a whole")
for _name in commands():
    _panel = "Stages, one at a time"
    app.command(_name, help=get_stage(_name).help, rich_help_panel=_panel)(stage_command(_name))
for _command in (convert, tokenize, reconstruct, export):
    app.command(rich_help_panel="A saved tokenizer")(_command)
for _command in (evaluate, compare):
    app.command(rich_help_panel="Evaluation")(_command)
for _command in (generate, ask, describe):
    app.command(rich_help_panel="A unified model")(_command)
for _name, _command in {"inspect": inspect, "export-tokens": export_tokens, "card": card}.items():
    app.command(_name, rich_help_panel="Token datasets")(_command)
for _command in (explain, forget, gc):
    app.command(rich_help_panel="Upkeep")(_command)
app.add_typer(nightly_app, name="nightly", rich_help_panel="Every night")


def main() -> None:
    """Run the command line."""
    run_program(lambda: call(app, "dualtoken"))


if __name__ == "__main__":
    main()
