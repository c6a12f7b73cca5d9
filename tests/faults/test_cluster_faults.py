"""Whatever dies on a cluster of three nodes, the finished run is that of an undisturbed one.

What dies are actors, raylets and drivers. Many crops of each image, all decoded again for the audit, make
units slow, so that a kill finds several under way. When to kill follows from a seed and from the receipts on
disk, never from the clock.
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import Status
from dualtoken.pipelines.core.receipts import done_units, read_receipts, receipt_name
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime import ray_executor
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from tests.helpers.damage import findings_below
from tests.helpers.three_nodes import ThreeNodes
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, root_hashes

pytestmark = pytest.mark.slow
NUM_VARIANTS = 24
"""Crops of an image, its mirror images included."""
SLOW = (
    "pretokenize.crops=[{kind: center, flip: true}, {kind: random, number: 22, min_scale: 0.4}]",
    "pretokenize.audit_rows=96",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, finished: Recipe, load_tiny: LoadTiny) -> Recipe:
    """All crops of both corpora, tokenized in this process."""
    root = shutil.copytree(finished.root, tmp_path_factory.mktemp("undisturbed") / "run")
    recipe = load_tiny(Path(root), *SLOW)
    run_command("pretokenize", recipe, LocalExecutor(), lambda _: None)
    return recipe


def token_jobs(recipe: Recipe) -> list[StageJob]:
    """Return the jobs of both corpora."""
    jobs: list[StageJob] = []
    for planned in Planner(recipe).on_corpora("pretokenize"):
        assert planned.job is not None
        jobs.append(planned.job)
    assert len(jobs) == 2
    return jobs


def assert_same_dataset(recipe: Recipe, undisturbed: Recipe) -> None:
    """The root hashes are those of the undisturbed run, and every kept image has each variant once."""
    assert len(root_hashes(recipe, "pretokenize")) == 2
    assert root_hashes(recipe, "pretokenize") == root_hashes(undisturbed, "pretokenize")
    for planned in Planner(recipe).on_corpora("pretokenize"):
        assert planned.job is not None
        assert planned.manifest is not None
        assert_every_variant_is_there_once(planned.job, num_kept=planned.manifest.counts["ok"])
    assert findings_below(recipe.root) == []


def assert_every_variant_is_there_once(job: StageJob, num_kept: int) -> None:
    """The rows are the variants of each image that the ledger calls ok, in order."""
    rows: list[tuple[bytes, int]] = []
    kept: list[bytes] = []
    for unit in sorted(read_receipts(job.store())):
        meta = _rows_of(job, f"meta/{unit}.parquet")
        data = read_data_shard(Path(job.folder) / f"data/{unit}.arrow")
        assert data["key"].to_pylist() == [row["key"] for row in meta]
        rows += [(row["key"], row["variant"]) for row in meta]
        ledger = _rows_of(job, f"ledger/{unit}.parquet")
        kept += [row["key"] for row in ledger if row["status"] == Status.OK.value]
    expected: list[tuple[bytes, int]] = []
    for key in kept:
        expected += [(key, variant) for variant in range(NUM_VARIANTS)]
    assert rows == expected
    assert len(set(kept)) == len(kept) == num_kept


def _rows_of(job: StageJob, file: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(job.folder) / file).to_pylist()


class Watched:
    """The token shards of a run, as they are on disk while it goes on."""

    def __init__(self, recipe: Recipe) -> None:
        self._jobs = token_jobs(recipe)
        self.num_units = sum(len(job.units) for job in self._jobs)
        self.times: dict[Path, int] = {}
        """Modification times of the files of finished units, nanoseconds."""

    def num_finished(self) -> int:
        """Count the units that have a receipt."""
        return sum(len(done_units(job.store())) for job in self._jobs)

    def wait_for(self, units: int, driver: "subprocess.Popen[bytes]", limit_seconds: float = 300) -> None:
        """Wait until so many units are finished; fail if the driver ends before."""
        deadline = time.monotonic() + limit_seconds
        while self.num_finished() < units:
            ended = driver.poll()
            assert ended is None, f"the driver ended with {ended} before {units} units were done"
            assert time.monotonic() < deadline, f"{units} units were not done in time"
            time.sleep(0.005)

    def note_times(self) -> None:
        """Note the files of finished units; fail if one was written again since it was noted."""
        for job in self._jobs:
            for unit, receipt in read_receipts(job.store()).items():
                self._note_time(Path(job.folder) / receipt_name(unit))
                for file in receipt.files:
                    self._note_time(Path(job.folder) / file.name)

    def _note_time(self, file: Path) -> None:
        modified = file.stat().st_mtime_ns
        assert self.times.setdefault(file, modified) == modified, f"{file} was written again"


class Driver:
    """`python -m dualtoken.jobs.pretokenize` on a cluster, which can be started again."""

    def __init__(self, root: str, address: str) -> None:
        self._command = [sys.executable, "-m", "dualtoken.jobs.pretokenize", TINY]
        self._command += ["--root", root, "--address", address]
        for override in (*SLOW, "cluster.max_workers=3"):
            self._command += ["--set", override]
        self.start()

    def start(self) -> None:
        """Start a process."""
        self.process = subprocess.Popen(self._command, cwd=PROJECT, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill the process, if it is still there."""
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(("workers", "batch_size", "blocks"), [(1, 1, 2), (4, 50, 5)])
def test_actors_batches_and_blocks_change_no_byte(
    workers: int,
    batch_size: int,
    blocks: int,
    tmp_path: Path,
    undisturbed: Recipe,
    finished: Recipe,
    load_tiny: LoadTiny,
    three_nodes: ThreeNodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [
        f"cluster.address={three_nodes.address}",
        f"cluster.max_workers={workers}",
        f"pretokenize.batch_size={batch_size}",
    ]
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), *SLOW, *overrides)
    monkeypatch.setattr(ray_executor, "MAX_BLOCKS", blocks)
    with RayExecutor(recipe.cluster) as executor:
        run_command("pretokenize", recipe, executor, lambda _: None)
    assert_same_dataset(recipe, undisturbed)


@pytest.mark.parametrize("seed", [0])
def test_actors_raylets_and_drivers_killed_twice_each_in_one_run_leave_the_same_dataset(
    seed: int,
    tmp_path: Path,
    undisturbed: Recipe,
    finished: Recipe,
    load_tiny: LoadTiny,
    three_nodes: ThreeNodes,
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), *SLOW)
    run = Watched(recipe)
    chance = random.Random(seed)
    driver = Driver(recipe.root, three_nodes.address)
    victims = chance.sample(("actor", "raylet", "driver") * 2, 6)
    moments = sorted(chance.sample(range(1, run.num_units - 1), len(victims)))
    try:
        for victim, units in zip(victims, moments, strict=True):
            run.wait_for(units, driver.process)
            run.note_times()
            if victim == "actor":
                three_nodes.kill_actor(chance)
            elif victim == "raylet":
                three_nodes.kill_raylet(chance)
            else:
                driver.kill()
                driver.start()
            assert run.num_finished() < run.num_units, f"the {victim} was killed when all was done"
        assert driver.process.wait(600) == 0
    finally:
        driver.kill()
    run.note_times()
    assert_same_dataset(recipe, undisturbed)
