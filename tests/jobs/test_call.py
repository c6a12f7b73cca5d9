"""Wrong calls of the command line."""

import pytest
import typer

from dualtoken.jobs.call import call
from dualtoken.jobs.cli import app
from dualtoken.pipelines.errors import ExitCode, UserError


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["pln", "scenes"],
            "No such command 'pln'. Did you mean 'plan', 'explain'? (`dualtoken --help` tells more)",
        ),
        (["run"], "Missing argument 'RECIPE' (`dualtoken run --help` tells more)"),
        (
            ["submit", "train", "scenes"],
            "Missing option '--address' (`dualtoken submit train --help` tells more)",
        ),
        (
            ["plan", "--roott", "x", "scenes"],
            "No such option: --roott (Possible options: --root) (`dualtoken plan --help` tells more)",
        ),
    ],
)
def test_a_wrong_call_is_a_mistake_in_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        call(app, "dualtoken", arguments)
    assert str(error.value) == line


def test_a_value_that_an_option_does_not_take_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match="Invalid value for '--attempts': ") as error:
        call(app, "dualtoken", ["submit", "train", "scenes", "--address", "x", "--attempts", "z"])
    assert "\n" not in str(error.value)


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        call(app, "dualtoken", [])
    assert end.value.code == ExitCode.CONFIGURATION
    assert "Usage: dualtoken" in capsys.readouterr().out


def test_a_commands_own_exit_code_stays() -> None:
    failing = typer.Typer()

    @failing.command()
    def fail() -> None:
        raise typer.Exit(ExitCode.TEMPORARY)

    with pytest.raises(SystemExit) as end:
        call(failing, "fail", [])
    assert end.value.code == ExitCode.TEMPORARY


def test_every_command_stands_in_a_named_part_of_the_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    unnamed = [name for name, command in commands.items() if not isinstance(command.rich_help_panel, str)]
    assert unnamed == []
