"""Who may import whom: the folders, and the rooms in them, by their order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOT = "dualtoken"
MAY_IMPORT = {
    "infra": set(),
    "model": set(),
    "pipelines": {"infra", "model"},
    "jobs": {"infra", "model", "pipelines"},
}
ROOMS = {
    "pipelines": [
        *("errors", "config", "core", "images", "inference", "curation", "tokens", "runtime"),
        *("loader", "training", "evaluation", "maintenance", "nightly", "workflow"),
    ],
    "model": [
        *(
            "config",
            "precision",
            "group_norm",
            "metrics",
            "randomness",
            "device_constants",
            "muon",
            "optimizer",
            "data_parallel",
            "hub",
            "vision",
            "quantize",
            "tokenizer",
            "teacher",
            "mllm",
            "training",
        ),
        "convert",
    ],
}
"""A room imports only itself and those before it."""
TORCH_ROOMS = {"inference", "loader", "training", "evaluation"}
"""Rooms of `pipelines` whose files import torch at module level; the others do so in a function, or not."""


def sources(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def imported(file: Path, *, at_module_level: bool = False) -> set[str]:
    """Return the modules that a file imports, in functions too; `from a import b` gives `a` and `a.b`."""
    tree = ast.parse(file.read_text())
    names: set[str] = set()
    for node in tree.body if at_module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


def folders(file: Path) -> set[str]:
    """Return which of the project's own folders a file imports."""
    return {name.split(".")[1] for name in imported(file) if name.startswith(f"{ROOT}.")}


def room(file: Path) -> str:
    """Name the room that a file is in, or the file itself where it stands beside the rooms."""
    return file.relative_to(PROJECT).parts[1].removesuffix(".py")


def rooms(file: Path, folder: str) -> set[str]:
    """Return the rooms of a folder that a file imports."""
    prefix = f"{ROOT}.{folder}."
    return {name.removeprefix(prefix).split(".")[0] for name in imported(file) if name.startswith(prefix)}


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_folders_import_only_what_lies_below_them(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    assert {str(file): folders(file) - allowed for file in sources(folder) if folders(file) - allowed} == {}


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_rooms_import_only_lower_rooms(folder: str) -> None:
    order = {name: place for place, name in enumerate(ROOMS[folder])}
    upward = {}
    for file in sources(folder):
        if room(file) == "__init__":
            continue
        assert room(file) in order, f"{file} is in no room: add its room to ROOMS, in its place"
        above = {other for other in rooms(file, folder) if order[other] > order[room(file)]}
        if above:
            upward[str(file)] = above
    assert upward == {}


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    names = {
        ".".join((ROOT, *file.relative_to(PROJECT).with_suffix("").parts)): file for file in sources(folder)
    }
    names = {name.removesuffix(".__init__"): file for name, file in names.items()}
    # A room's face imports its files and none of them imports it, so faces are left out.
    edges = {
        name: imported(file) & names.keys() - {name}
        for name, file in names.items()
        if file.name != "__init__.py"
    }
    open_names = dict(edges)
    while free := [name for name, targets in open_names.items() if not targets & open_names.keys()]:
        for name in free:
            del open_names[name]
    assert open_names == {}


def test_torch_is_imported_at_module_level_in_four_rooms_only() -> None:
    users = {
        file
        for file in sources("pipelines")
        if "torch" in {name.split(".")[0] for name in imported(file, at_module_level=True)}
    }
    assert users
    assert {str(file) for file in users if room(file) not in TORCH_ROOMS} == set()


def test_nobody_imports_a_folder_by_its_own_name() -> None:
    short = {*MAY_IMPORT, "recipes"}
    files = [file for folder in (*short, "tests", "benchmarks") for file in sources(folder)]
    assert {str(file): roots(file) & short for file in files if roots(file) & short} == {}


def test_model_touches_no_cluster_no_table_and_no_network() -> None:
    forbidden = {"ray", "pyarrow", "fsspec", "s3fs", "dagster", "aiohttp", "requests", "httpx", "urllib"}
    assert {str(file): roots(file) & forbidden for file in sources("model") if roots(file) & forbidden} == {}


def users_of(library: str) -> set[str]:
    return {
        file.relative_to(PROJECT).as_posix()
        for folder in MAY_IMPORT
        for file in sources(folder)
        if library in roots(file)
    }


def test_ray_is_imported_where_clusters_are_met_and_nowhere_else() -> None:
    users = users_of("ray")
    assert users
    assert {
        user
        for user in users
        if not user.startswith(("infra/ray_", "jobs/")) and user != "pipelines/runtime/ray_executor.py"
    } == set()


def test_dagster_is_imported_in_the_workflow_and_nowhere_else() -> None:
    users = users_of("dagster")
    assert users
    assert {user for user in users if not user.startswith("pipelines/workflow/")} == set()


@pytest.mark.parametrize(
    "module",
    [
        "dualtoken",
        "dualtoken.model.config",
        "dualtoken.pipelines.config.parse",
        "dualtoken.pipelines.runtime.plan",
        "dualtoken.jobs.cli",
    ],
)
def test_what_reads_a_recipe_imports_neither_torch_nor_ray_nor_dagster(module: str) -> None:
    heavy = (
        f"import sys, {module}; print(sorted({{'torch', 'ray', 'dagster', 'open_clip'}} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert found.stdout.strip() == "[]"
