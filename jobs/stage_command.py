"""A stage's command: `dualtoken <stage>`, and `python -m jobs.<stage>`, the entry point of a Ray job."""

from collections.abc import Callable

import typer

from dualtoken.jobs.call import call
from dualtoken.jobs.exits import run_program
from dualtoken.jobs.options import (
    AddressOption,
    CorpusOption,
    InProcessOption,
    RecipeArgument,
    RootOption,
    SetOption,
)
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe, print_line
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import get_stage


def stage_command(command: str) -> Callable[..., None]:
    """Return the function behind a stage's command."""

    def run(
        recipe: RecipeArgument,
        overrides: SetOption = None,
        root: RootOption = None,
        corpus: CorpusOption = None,
        address: AddressOption = None,
        in_process: InProcessOption = False,
    ) -> None:
        settings = open_recipe(recipe, overrides, root, address)
        check_corpora(settings.corpora, corpus)
        with open_executor(settings.cluster, in_process=in_process) as executor:
            finished = run_command(command, settings, executor, print_line, corpus)
        for planned in finished:
            if planned.manifest and planned.job:
                counts = [f"{count} {status}" for status, count in planned.manifest.counts.items()]
                print_line(f"{planned.label}: {', '.join(counts) or 'done'}; {planned.job.folder}")

    return run


def main(command: str) -> None:
    """Run one stage as a program of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=get_stage(command).help)(stage_command(command))
    run_program(lambda: call(app, f"python -m jobs.{command}"))


if __name__ == "__main__":
    assert __spec__ is not None
    main(__spec__.name.rpartition(".")[2])
