"""On a store whose connections break, a run gives the bytes of an undisturbed one, and nothing is visible by half.

Both servers are real, and so is s3fs; between them stands `tests.fault_proxy`.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, iter_receipts
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, exit_code
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.fault_proxy import Faults, fault_proxy
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import TINY

pytestmark = pytest.mark.slow
DONE_AGAIN = {
    ("download", "tiny-train"),
    ("download", "tiny-heldout"),
    ("pretokenize", "tiny-train"),
    ("pretokenize", "tiny-heldout"),
}


@contextmanager
def through(faults: Faults) -> Iterator[None]:
    """Put the proxy between s3fs and the server that the environment names."""
    server = os.environ["AWS_ENDPOINT_URL"]
    with fault_proxy(server, faults) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs's own five tries are enough to wait for
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["rclone", "moto"])
def begun(request: pytest.FixtureRequest, tmp_path: Path, finished: Recipe) -> Iterator[Recipe]:
    """The finished run on S3, but its downloads and tokens, which are to be made again."""
    left_out = {
        Path(one.job.folder)
        for one in Planner(finished).plan()
        if one.job and (one.stage, one.corpus) in DONE_AGAIN
    }
    with s3_server(request.param, tmp_path) as bucket:
        root = Store(f"{bucket}/run")
        for name, _ in Store(finished.root).files():
            if not left_out & set(Path(finished.root, name).parents) and "report" not in name:
                root.put(Path(finished.root) / name, name)
        yield load_recipe(TINY, [f"root={root.url}"])


def run_again(recipe: Recipe) -> None:
    for command in ("download", "pretokenize"):
        run_command(command, recipe, LocalExecutor(), lambda _: None)


def hashes(recipe: Recipe) -> dict[str, str]:
    made = [one for one in Planner(recipe).plan() if (one.stage, one.corpus) in DONE_AGAIN]
    return {one.label: one.manifest.root_hash for one in made if one.manifest}


def test_a_run_through_broken_connections_gives_the_same_bytes(begun: Recipe, finished: Recipe) -> None:
    faults = Faults(seed=1, share=0.3)
    with through(faults):
        run_again(begun)
        assert hashes(begun) == hashes(finished)
    assert {"lose PUT", "drop PUT", "cut GET", "delay PUT"} <= faults.counts.keys()
    assert [finding for checked in verify(begun.root) for finding in checked.findings] == []


def test_a_store_that_goes_away_leaves_nothing_by_half_and_the_run_goes_on(
    begun: Recipe, finished: Recipe
) -> None:
    faults = Faults(seed=2, share=0.1)
    failures = 0
    for cut in (60, 150, 240):
        faults.requests, faults.dead_after = 0, cut
        with through(faults):
            started = time.monotonic()
            try:
                run_again(begun)
            except Exception as error:  # noqa: BLE001  (whatever it is, a user must be told to try again)
                failures += 1
                code = error.code if isinstance(error, UnitsFailed) else exit_code(error)
                assert code == ExitCode.TEMPORARY
        assert time.monotonic() - started < 120, "tries are not bounded"
        assert_nothing_by_half(begun)
    assert failures, "the store never went away in the middle"
    run_again(begun)
    assert hashes(begun) == hashes(finished)
    assert [finding for checked in verify(begun.root) for finding in checked.findings] == []


def assert_nothing_by_half(recipe: Recipe) -> None:
    """What a receipt names is there and whole; a manifest stands over finished stages only."""
    for one in Planner(recipe).plan():
        if one.job is None or (one.manifest is None and not one.done):
            continue
        store = one.job.store()
        files = dict(store.files())
        named = {file.name: file.bytes for receipt in iter_receipts(store) for file in receipt.files}
        assert {name: files.get(name) for name in named} == named
        assert (MANIFEST_FILE in files) <= (len(one.done) == one.num_units)


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_conditional_put_whose_reply_was_lost_is_known_as_ours(kind: str, tmp_path: Path) -> None:
    with s3_server(kind, tmp_path) as bucket, through(faults := Faults(seed=0, share=1, kinds=["lose"])):
        store = Store(f"{bucket}/run")
        assert store.put_if_absent(b"ours", "receipt")
        assert faults.counts["lose PUT"] == 1
        assert store.read("receipt") == b"ours"


def test_a_large_file_arrives_though_the_reply_to_its_last_request_is_lost_and_is_read_though_a_part_breaks_off(
    tmp_path: Path,
) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(1 << 20) * 101)  # over twice the part of an upload
    lost, cut = Faults(seed=0, share=1, kinds=["lose"]), Faults(seed=0, share=1, kinds=["cut"])
    with s3_server("moto", tmp_path):
        with through(lost):
            Store("s3://test/run").put(source, "shard")
        with through(cut):
            copy = Store("s3://test/run").local_copy("shard", tmp_path / "scratch")
    assert digest(copy) == digest(source)
    assert lost.counts["lose POST"] >= 2, "an upload begins and ends with one"
    assert cut.counts["cut GET"] == 1


def test_a_command_whose_store_does_not_answer_says_so_in_one_line_and_exits_with_75(tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path) as bucket, through(gone := Faults(seed=0, share=0)):
        gone.dead_after = 0
        command = [
            sys.executable,
            "-m",
            "dualtoken.jobs.scenes",
            TINY,
            "--root",
            f"{bucket}/run",
            "--in-process",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(TINY).parents[1]
        )
    assert (done.returncode, done.stdout) == (75, "")
    assert re.fullmatch(r"dualtoken: .*endpoint URL.*; try again\n", done.stderr)
    assert 1 < gone.requests <= 60, (
        "5 times 5 tries of s3fs, each of them two requests of botocore, for the first file asked for"
    )
