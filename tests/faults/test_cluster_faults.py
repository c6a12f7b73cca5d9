"""Three nodes, and whatever dies on them, actors, raylets and drivers: what is finished is what an undisturbed run finishes.

Units are made slow by many crops of each image, all of them decoded again, so that a kill finds several under way. When to kill
follows from a seed and from the receipts on disk, never from the clock.
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import Status
from dualtoken.pipelines.core.receipts import done_units, read_receipts, receipt_name
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime import ray_executor as run_ray
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from tests.helpers.three_nodes import ThreeNodes
from tests.helpers.tiny_run import TINY, LoadTiny

pytestmark = pytest.mark.slow
PROJECT = Path(TINY).parents[1]
VARIANTS = 24
SLOW = (
    "pretokenize.crops=[{kind: center, flip: true}, {kind: random, number: 22, min_scale: 0.4}]",
    "pretokenize.audit_rows=96",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, finished: Recipe, load_tiny: LoadTiny) -> Recipe:
    """All crops of both corpora, tokenized in this process."""
    return _prepared(tmp_path_factory.mktemp("undisturbed") / "run", finished, load_tiny, run=True)


def _prepared(
    root: Path, finished: Recipe, load_tiny: LoadTiny, *overrides: str, run: bool = False
) -> Recipe:
    shutil.copytree(finished.root, root)
    recipe = load_tiny(root, *SLOW, *overrides)
    if run:
        run_command("pretokenize", recipe, LocalExecutor(), lambda _: None)
    return recipe


def tokens(recipe: Recipe) -> list[PlannedStage]:
    return list(Planner(recipe).on_corpora("pretokenize"))


def root_hashes(recipe: Recipe) -> dict[str, str]:
    return {one.label: one.manifest.root_hash for one in tokens(recipe) if one.manifest}


def assert_every_variant_is_there_once(recipe: Recipe) -> None:
    for one in tokens(recipe):
        assert one.job is not None
        folder, rows, kept = Path(one.job.folder), [], []
        for unit in sorted(read_receipts(one.job.store())):
            meta = pq.read_table(folder / f"meta/{unit}.parquet", columns=["key", "variant"]).to_pylist()
            assert read_data_shard(folder / f"data/{unit}.arrow")["key"].to_pylist() == [
                row["key"] for row in meta
            ]
            rows += [(row["key"], row["variant"]) for row in meta]
            kept += [
                row["key"]
                for row in pq.read_table(folder / f"ledger/{unit}.parquet").to_pylist()
                if row["status"] == Status.OK.value
            ]
        assert rows == [(key, variant) for key in kept for variant in range(VARIANTS)]
        assert len(set(kept)) == len(kept) == (one.manifest and one.manifest.counts["ok"])
    assert [finding for checked in verify(recipe.root) for finding in checked.findings] == []


class Watched:
    """A run's shards, as they lie on disk while it goes on."""

    def __init__(self, recipe: Recipe) -> None:
        self._jobs = [one.job for one in tokens(recipe) if one.job]
        self.units = sum(len(job.units) for job in self._jobs)
        self.times: dict[Path, int] = {}
        """Of the files of units seen finished, in nanoseconds."""

    def finished(self) -> int:
        return sum(len(done_units(job.store())) for job in self._jobs)

    def wait_for(self, units: int, driver: "subprocess.Popen[bytes]", limit_seconds: float = 300) -> None:
        until = time.monotonic() + limit_seconds
        while self.finished() < units:
            assert driver.poll() is None, (
                f"the driver ended with {driver.returncode} before {units} units were done"
            )
            assert time.monotonic() < until, f"{units} units were not done in time"
            time.sleep(0.005)

    def note_times(self) -> None:
        for job in self._jobs:
            for unit, receipt in read_receipts(job.store()).items():
                for name in (receipt_name(unit), *(file.name for file in receipt.files)):
                    file = Path(job.folder) / name
                    assert self.times.setdefault(file, file.stat().st_mtime_ns) == file.stat().st_mtime_ns, (
                        f"{file} was written again"
                    )


class Driver:
    """`python -m jobs.pretokenize` on a cluster, started again and again."""

    def __init__(self, root: str, address: str) -> None:
        settings = [word for override in (*SLOW, "cluster.max_workers=3") for word in ("--set", override)]
        self._command = [
            sys.executable,
            "-m",
            "dualtoken.jobs.pretokenize",
            TINY,
            "--root",
            root,
            "--address",
            address,
            *settings,
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=PROJECT, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(("workers", "batch_size", "blocks"), [(1, 1, 2), (4, 50, 5)])
def test_actors_batches_and_blocks_change_no_byte(
    workers: int, batch_size: int, blocks: int, tmp_path: Path, undisturbed: Recipe, finished: Recipe, load_tiny: LoadTiny,
    three_nodes: ThreeNodes, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cluster = (f"cluster.address={three_nodes.address}", f"cluster.max_workers={workers}")
    recipe = _prepared(
        tmp_path / "run", finished, load_tiny, *cluster, f"pretokenize.batch_size={batch_size}"
    )
    monkeypatch.setattr(run_ray, "MAX_BLOCKS", blocks)
    with RayExecutor(recipe.cluster) as executor:
        run_command("pretokenize", recipe, executor, lambda _: None)
    assert len(root_hashes(recipe)) == 2
    assert root_hashes(recipe) == root_hashes(undisturbed)
    assert_every_variant_is_there_once(recipe)


@pytest.mark.parametrize("seed", [0])
def test_actors_raylets_and_drivers_killed_twice_each_in_one_run_leave_the_same_dataset(
    seed: int,
    tmp_path: Path,
    undisturbed: Recipe,
    finished: Recipe,
    load_tiny: LoadTiny,
    three_nodes: ThreeNodes,
) -> None:
    recipe = _prepared(tmp_path / "run", finished, load_tiny)
    run, chance, driver = Watched(recipe), random.Random(seed), Driver(recipe.root, three_nodes.address)
    victims = chance.sample(("actor", "raylet", "driver") * 2, 6)
    moments = sorted(chance.sample(range(1, run.units - 1), len(victims)))
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
            assert run.finished() < run.units, f"the {victim} was killed when all was done"
        assert driver.process.wait(600) == 0
    finally:
        driver.kill()
    run.note_times()
    assert root_hashes(recipe) == root_hashes(undisturbed)
    assert_every_variant_is_there_once(recipe)
