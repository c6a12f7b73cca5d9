"""A stage's command: `dualtoken <stage>`, and `python -m jobs.<stage>`, the entry point of a Ray job."""

from collections.abc import Callable, Sequence

import typer

from dualtoken.jobs.call import call
from dualtoken.jobs.exits import run_program
from dualtoken.jobs.options import (
    AddressOption,
    CorpusOption,
    InProcessOption,
    ProfileOption,
    RecipeArgument,
    RootOption,
    SetOption,
)
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe, print_line
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import get_stage


def stage_command(command: str) -> Callable[..., None]:
    """Return the function behind a stage's command."""
    if get_stage(command).trains:
        return _training_command(command)

    def run(
        recipe: RecipeArgument,
        overrides: SetOption = None,
        root: RootOption = None,
        corpus: CorpusOption = None,
        address: AddressOption = None,
        in_process: InProcessOption = False,
    ) -> None:
        settings = open_recipe(recipe, overrides, root, address)
        _run(command, settings, corpus, in_process=in_process)

    return run


def _training_command(command: str) -> Callable[..., None]:
    """Return the same for a stage that trains, whose steps may be profiled."""

    def run(
        recipe: RecipeArgument,
        overrides: SetOption = None,
        root: RootOption = None,
        corpus: CorpusOption = None,
        address: AddressOption = None,
        in_process: InProcessOption = False,
        profile: ProfileOption = None,
    ) -> None:
        settings = open_recipe(recipe, overrides, root, address, profile)
        _run(command, settings, corpus, in_process=in_process)

    return run


def _run(command: str, settings: Recipe, corpora: Sequence[str] | None, *, in_process: bool) -> None:
    check_corpora(settings.corpora, corpora)
    with open_executor(settings.cluster, in_process=in_process) as executor:
        finished = run_command(command, settings, executor, print_line, corpora)
    for planned in finished:
        if planned.manifest and planned.job:
            counts = [f"{count} {status}" for status, count in planned.manifest.counts.items()]
            print_line(f"{planned.label}: {', '.join(counts) or 'done'}; {planned.job.folder}")


def main(command: str) -> None:
    """Run one stage as a program of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=get_stage(command).help)(stage_command(command))
    run_program(lambda: call(app, f"python -m jobs.{command}"))


if __name__ == "__main__":
    assert __spec__ is not None
    main(__spec__.name.rpartition(".")[2])
