"""Calls the command line, so that a wrong call is told as every other mistake is: one line, exit code 2."""

import sys
from collections.abc import Sequence

import typer

from dualtoken.pipelines.errors import UserError


def call(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command by its arguments, by default this process's; leaves by `SystemExit`, as a program does.

    Raises `UserError` for a command, an option or an argument that is wrong or missing.
    """
    try:
        code = app(arguments, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        if not error.format_message():  # without arguments: its help is printed already
            sys.exit(error.exit_code)
        raise UserError(_one_line(error)) from None
    sys.exit(code)


def _one_line(error: typer.TyperException) -> str:
    """Return what is wrong, and where help on that command is."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message} (`{context.command_path} --help` tells more)"
