"""Runs `dualtoken` as a user does: in a process of its own, or in this one."""

import os
import subprocess
import sys
from collections.abc import Mapping

from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from tests.helpers.tiny_run import PROJECT


def dualtoken_command(*arguments: object) -> list[str]:
    """Return the command that starts `dualtoken` with this Python."""
    return [sys.executable, "-m", "dualtoken.jobs.cli", *map(str, arguments)]


def run_dualtoken(
    *arguments: object, timeout_seconds: float = 120, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own and return its exit code and output."""
    return subprocess.run(
        dualtoken_command(*arguments),
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
        timeout=timeout_seconds,
        env={**os.environ, **(environment or {})},
    )


def printed_lines(*arguments: object) -> list[str]:
    """Run a command in this process and return the lines that it prints; its errors are raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()
