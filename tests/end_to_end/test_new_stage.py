"""A stage that a module declares in a few lines is served by every command, with no other edit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.tiny_run import PROJECT, TINY

STAGE = {"DUALTOKEN_STAGES": "tests.helpers.brightness_stage"}
CORPUS = "tiny-train"


def python(*arguments: object) -> str:
    """Run a command that knows the stage; it must exit with 0."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **STAGE}
    ended = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def dualtoken(*arguments: object) -> str:
    return python("-m", "dualtoken.jobs.cli", *arguments)


def made(root: Path) -> Path:
    """Return the stage's one folder."""
    (folder,) = (root / CORPUS / "brightness").iterdir()
    return folder


@pytest.fixture
def root(finished: Recipe, tmp_path: Path) -> Path:
    """A run of the tiny recipe that went through every stage but the new one."""
    return shutil.copytree(finished.root, tmp_path / "run")


def test_a_declared_stage_is_planned_run_watched_repaired_forgotten_and_explained(
    root: Path, tmp_path: Path
) -> None:
    recipe = (TINY, "--root", root)
    assert any(line.split()[:2] == ["brightness", CORPUS] for line in dualtoken("plan", *recipe).splitlines())

    lines = dualtoken("run", *recipe, "--in-process").splitlines()
    assert lines[0] == "brightness (stage 12 of 13): 13 units to do"
    assert lines[-1].startswith("report: ")
    report = json.loads(Path(lines[-1].removeprefix("report: ")).with_name("report.json").read_text())
    assert "brightness" in {stage["command"] for stage in report["stages"]}
    assert dualtoken("run", *recipe, "--in-process").startswith("nothing to do")
    assert "brightness" in dualtoken("status", *recipe)
    assert f"brightness {CORPUS}: the same, {made(root).name}" in dualtoken("explain", *recipe)

    table = made(root) / "00000.parquet"
    before = table.read_bytes()
    table.write_bytes(before[:-1])
    repaired = dualtoken("verify", made(root), "--repair", "--in-process")
    assert "truncated" in repaired
    assert "all as committed" in repaired
    assert table.read_bytes() == before

    (made(root) / "00077.parquet").write_bytes(b"left by a killed attempt")
    garbage = dualtoken("gc", *recipe, "--older-than", 0, "--delete")
    assert "00077.parquet" in garbage
    assert table.exists()

    keys = pq.read_table(table)["key"].to_pylist()
    (tmp_path / "keys").write_text(keys[0].hex())
    assert "brightness" in dualtoken(
        "forget", *recipe, "--corpus", CORPUS, "--keys", tmp_path / "keys", "--delete"
    )
    assert pq.read_table(table)["key"].to_pylist() == keys[1:]
    assert "all as committed" in dualtoken("verify", made(root))


def test_a_declared_stage_is_an_asset_and_has_a_module_of_its_own(root: Path) -> None:
    code = (
        "from dualtoken.pipelines.config.parse import load_recipe; "
        "from dualtoken.pipelines.workflow.assets import recipe_definitions; "
        f"definitions = recipe_definitions(load_recipe({TINY!r}), None, print); "
        "print([key.to_user_string() for key in definitions.resolve_all_asset_keys()])"
    )
    assert "'brightness'" in python("-c", code)
    alone = python("-m", "jobs.brightness", TINY, "--root", root, "--in-process", "--corpus", CORPUS)
    assert f"brightness {CORPUS}: " in alone.splitlines()[-1]


def test_a_declared_stage_runs_as_a_job_on_a_cluster(dashboard: str, root: Path) -> None:
    submit = ("submit", "brightness", TINY, "--root", root, "--address", dashboard)
    lines = dualtoken(*submit, "--set", "cluster.max_workers=1").splitlines()
    assert lines[-1].startswith("brightness: done (dualtoken-brightness-tiny-")
    assert len(list((made(root) / "receipts").iterdir())) == 10


def test_a_stage_that_is_not_declared_is_named(root: Path) -> None:
    python("-m", "jobs.brightness", TINY, "--root", root, "--in-process")
    command = [sys.executable, "-m", "dualtoken.jobs.cli", "gc", TINY, "--root", str(root)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert "no stage brightness is declared" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
