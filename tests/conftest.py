"""What all tests share: one finished run of the tiny recipe, and the order in which files of tests begin."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

# All tests check the shapes in signatures of model code. The hook only sees modules that are imported later.
install_import_hook("dualtoken.model", "beartype.beartype")

from dualtoken.infra.openmp import wait_briefly  # noqa: E402
from dualtoken.pipelines.config.parse import load_recipe  # noqa: E402
from dualtoken.pipelines.config.recipe import Recipe  # noqa: E402
from dualtoken.pipelines.runtime.executor import LocalExecutor  # noqa: E402
from dualtoken.pipelines.runtime.run import run_command  # noqa: E402
from dualtoken.pipelines.runtime.stages import commands  # noqa: E402
from tests.helpers.tiny_run import TINY, LoadTiny  # noqa: E402

wait_briefly()  # before torch is imported
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
"""Names of the files that begin first, so that none of them is left running alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first."""
    items.sort(key=_place_in_order)


def _place_in_order(item: pytest.Item) -> int:
    if item.path.stem in LONGEST:
        return LONGEST.index(item.path.stem)
    return len(LONGEST)


@pytest.fixture(scope="session")
def load_tiny() -> LoadTiny:
    """Load the tiny recipe for a root, with overrides in the form of `--set`."""

    def load(root: Path, *overrides: str) -> Recipe:
        return load_recipe(TINY, [f"root={root}", *overrides])

    return load


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, load_tiny: LoadTiny) -> Recipe:
    """A run of the tiny recipe through every stage, made once for all of pytest's processes.

    Tests must not change it: those that change files take a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    recipe = load_tiny(shared / "finished")
    done = shared / "finished.done"
    with FileLock(shared / "finished.lock"):
        if not done.exists():
            for command in commands():
                run_command(command, recipe, LocalExecutor(), lambda _: None)
            done.touch()
    return recipe
