"""The hash of the sources: of the text alone, and of what a module imports alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dualtoken.infra.source_code import commit
from dualtoken.pipelines.runtime.stages import all_stages, get_stage
from tests.helpers.tiny_run import PROJECT

HASHES = """
from dualtoken.infra.source_code import code_hash, package_hash
print(code_hash("dualtoken.pipelines.images.download"), package_hash())
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package as it is installed: files, no links."""
    rubbish = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(PROJECT / "dualtoken", tmp_path / "dualtoken", ignore=rubbish)


def hashes(project: Path) -> tuple[str, str]:
    """Return the hashes of the download's code and of the package, as a project's own code tells them."""
    environment = {**os.environ, "PYTHONPATH": str(project)}
    output = subprocess.check_output([sys.executable, "-c", HASHES], cwd=project, env=environment, text=True)
    download, package = output.split()
    return download, package


def test_equal_sources_have_equal_hashes_whatever_lies_beside_them_and_whatever_their_line_ends(
    copied: Path,
) -> None:
    checkout = hashes(PROJECT)
    assert hashes(copied.parent) == checkout  # and now there are compiled files, too
    (copied / "README.md").write_text("other words\n")
    for file in copied.rglob("*.py"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert hashes(copied.parent) == checkout


def test_a_stages_hash_changes_with_what_its_worker_imports_and_with_nothing_else(copied: Path) -> None:
    download, package = hashes(copied.parent)
    with (copied / "jobs/cli.py").open("a") as file:
        file.write("# changed\n")
    same_download, other_package = hashes(copied.parent)
    assert same_download == download
    assert other_package != package

    with (copied / "infra/fetch.py").open("a") as file:
        file.write("# changed\n")
    other_download, _ = hashes(copied.parent)
    assert other_download != download


def test_every_stage_has_a_hash_and_those_of_unlike_work_differ() -> None:
    stages = all_stages()
    assert len({stage.code for stage in stages}) == len(stages)
    assert "dualtoken.pipelines.tokens.finish" in get_stage("pretokenize").modules


def test_the_commit_is_that_of_the_checkout() -> None:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=PROJECT, text=True).strip()
    assert head.startswith(commit().removesuffix("-dirty"))
    assert len(commit()) >= 12
