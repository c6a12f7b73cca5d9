"""How a program ends when nobody reads its output to the end, and what its exit codes are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import ExitCode
from tests.helpers.command_line import dualtoken_command
from tests.helpers.tiny_run import PROJECT, TINY, tokens_job


def end_with_no_reader(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command whose output's reader has left, as `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            command,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("arguments", [("plan", TINY), ("--help",)])
def test_a_reader_who_has_seen_enough_ends_a_command_well(arguments: tuple[str, ...]) -> None:
    ended = end_with_no_reader(*dualtoken_command(*arguments))
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")


def test_a_card_that_nobody_reads_to_its_end_is_no_fault(finished: Recipe) -> None:
    ended = end_with_no_reader(*dualtoken_command("card", tokens_job(finished).folder))
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")


def test_output_that_was_held_back_to_the_end_is_no_fault_either() -> None:
    script = "from dualtoken.jobs.exits import run_program; run_program(lambda: print('held back'))"
    ended = end_with_no_reader(sys.executable, "-c", script)
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")


def test_a_mistake_stays_one_whether_or_not_somebody_reads(tmp_path: Path) -> None:
    ended = end_with_no_reader(*dualtoken_command("plan", tmp_path))
    assert ended.returncode == ExitCode.CONFIGURATION
    assert ended.stderr == f"dualtoken: recipe '{tmp_path}' is a folder: give the YAML file in it\n"


def test_the_readme_tells_every_exit_code() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| exit code |")[2].partition("\n\n")[0]
    codes = {
        cell for line in table.splitlines()[2:] for cell in line.split("|")[1].replace(" ", "").split(",")
    }
    assert codes == {str(int(code)) for code in ExitCode}
