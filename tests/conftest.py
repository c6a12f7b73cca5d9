"""What tests share: a recipe that runs the whole chain in seconds, and one finished run of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import dualtoken.jobs  # noqa: F401  (sets what must be set before torch is imported)
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import commands

# Ray's workers would wait for whatever else these tests do at the same time.
os.environ.setdefault("RAY_worker_niceness", "0")

pytest_plugins = ("tests.helpers.ray_head", "tests.helpers.three_nodes")
LONGEST = (
    "test_executors_agree",
    "test_ray_jobs",
    "test_ray_session",
    "test_submit",
    "test_model_commands",
    "test_cli",
    "test_ray_train",
)
"""These files begin first, so that none is left running alone at the end."""
TINY = str(Path(__file__).with_name("tiny.yaml"))
LoadTiny = Callable[..., Recipe]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def load_tiny() -> LoadTiny:
    def load(root: Path, *overrides: str) -> Recipe:
        return load_recipe(TINY, [f"root={root}", *overrides])

    return load


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, load_tiny: LoadTiny) -> Recipe:
    """A run of the tiny recipe that went through every stage, made by one of pytest's processes for all; tests must not change it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    recipe = load_tiny(shared / "finished")
    with FileLock(shared / "finished.lock"):
        if not (done := shared / "finished.done").exists():
            for command in commands():
                run_command(command, recipe, LocalExecutor(), lambda _: None)
            done.touch()
    return recipe


def planned(recipe: Recipe, stage: str, corpus: str | None = None) -> PlannedStage:
    """Plan one stage as things stand now."""
    return Planner(recipe).get(stage, corpus)
