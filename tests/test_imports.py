"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
OURS = {"infra", "model", "pipelines", "jobs", "recipes"}
MAY_IMPORT = {"infra": set(), "model": set(), "pipelines": {"infra", "model"}, "jobs": {"infra", "model", "pipelines"}}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


def sources(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_folders_import_only_what_lies_below_them(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    assert {str(file): roots(file) & OURS - allowed for file in sources(folder) if roots(file) & OURS - allowed} == {}


def test_model_touches_no_cluster_no_table_and_no_network() -> None:
    forbidden = {"ray", "pyarrow", "fsspec", "s3fs", "dagster", "aiohttp", "requests", "httpx", "urllib"}
    assert {str(file): roots(file) & forbidden for file in sources("model") if roots(file) & forbidden} == {}


def test_ray_is_imported_where_clusters_are_met_and_nowhere_else() -> None:
    users = {file.relative_to(PROJECT).as_posix() for folder in MAY_IMPORT for file in sources(folder) if "ray" in roots(file)}
    assert users
    assert {user for user in users if not user.startswith(("infra/ray_", "jobs/")) and user != "pipelines/run_ray.py"} == set()


def test_dagster_is_imported_in_the_workflow_and_nowhere_else() -> None:
    users = {file.relative_to(PROJECT).as_posix() for folder in MAY_IMPORT for file in sources(folder) if "dagster" in roots(file)}
    assert users
    assert {user for user in users if not user.startswith("pipelines/workflow/")} == set()


@pytest.mark.parametrize("module", ["model.config", "pipelines.config", "pipelines.recipe", "pipelines.plan", "jobs.cli"])
def test_what_reads_a_recipe_imports_neither_torch_nor_ray_nor_dagster(module: str) -> None:
    heavy = f"import sys, {module}; print(sorted({{'torch', 'ray', 'dagster', 'open_clip'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert found.stdout.strip() == "[]"
