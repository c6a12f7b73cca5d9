"""On a store whose connections break, a run gives the bytes of an undisturbed one.

Nothing half written is visible. Both S3 servers are real, and so is s3fs. Between them stands
`tests.helpers.fault_proxy`.
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
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.damage import findings_below
from tests.helpers.fault_proxy import Faults, fault_proxy
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import PROJECT, TINY, root_hashes

pytestmark = pytest.mark.slow
DONE_AGAIN = ("download", "pretokenize")
"""Commands whose outputs are left out at first."""


@contextmanager
def broken_connections(faults: Faults) -> Iterator[None]:
    """Put the proxy between s3fs and the server that the environment names, while the block runs."""
    server = os.environ["AWS_ENDPOINT_URL"]
    with fault_proxy(server, faults) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # the five tries of s3fs itself are enough to wait for
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["rclone", "moto"])
def begun(request: pytest.FixtureRequest, tmp_path: Path, finished: Recipe) -> Iterator[Recipe]:
    """The finished run on S3 without its downloads, tokens and report."""
    left_out: set[Path] = set()
    for planned in Planner(finished).plan():
        if planned.job and planned.stage in DONE_AGAIN:
            left_out.add(Path(planned.job.folder))
    with s3_server(request.param, tmp_path) as bucket:
        root = Store(f"{bucket}/run")
        for name, _ in Store(finished.root).files():
            file = Path(finished.root) / name
            if left_out.isdisjoint(file.parents) and "report" not in name:
                root.put(file, name)
        yield load_recipe(TINY, [f"root={root.url}"])


def run_again(recipe: Recipe) -> None:
    for command in DONE_AGAIN:
        run_command(command, recipe, LocalExecutor(), lambda _: None)


def test_a_run_through_broken_connections_gives_the_same_bytes(begun: Recipe, finished: Recipe) -> None:
    faults = Faults(seed=1, share=0.3)
    with broken_connections(faults):
        run_again(begun)
        assert root_hashes(begun, *DONE_AGAIN) == root_hashes(finished, *DONE_AGAIN)
    assert {"lose PUT", "drop PUT", "cut GET", "delay PUT"} <= faults.counts.keys()
    assert findings_below(begun.root) == []


def test_a_store_that_goes_away_leaves_nothing_by_half_and_the_run_goes_on(
    begun: Recipe, finished: Recipe
) -> None:
    faults = Faults(seed=2, share=0.1)
    exit_codes: list[int] = []
    for num_requests in (60, 150, 240):
        faults.requests = 0
        faults.dead_after = num_requests
        with broken_connections(faults):
            started = time.monotonic()
            try:
                run_again(begun)
            except Exception as error:  # noqa: BLE001  (whatever it is, a user must be told to try again)
                exit_codes.append(code_of(error))
        assert time.monotonic() - started < 120, "tries are not bounded"
        assert_nothing_half_written(begun)
    assert exit_codes, "the store never went away in the middle"
    assert set(exit_codes) == {ExitCode.TEMPORARY}
    run_again(begun)
    assert root_hashes(begun, *DONE_AGAIN) == root_hashes(finished, *DONE_AGAIN)
    assert findings_below(begun.root) == []


def code_of(error: Exception) -> int:
    """Return the exit code of a command that ends with an error."""
    if isinstance(error, UnitsFailed):
        return error.code
    return exit_code(error)


def assert_nothing_half_written(recipe: Recipe) -> None:
    """What a receipt names is there and whole; only finished stages have a manifest."""
    for planned in Planner(recipe).plan():
        if planned.job is None or (planned.manifest is None and not planned.done):
            continue
        store = planned.job.store()
        sizes = dict(store.files())
        for receipt in iter_receipts(store):
            for file in receipt.files:
                assert sizes.get(file.name) == file.bytes
        if MANIFEST_FILE in sizes:
            assert len(planned.done) == planned.num_units


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_conditional_put_whose_reply_was_lost_is_known_as_ours(kind: str, tmp_path: Path) -> None:
    faults = Faults(seed=0, share=1, kinds=["lose"])
    with s3_server(kind, tmp_path) as bucket, broken_connections(faults):
        store = Store(f"{bucket}/run")
        assert store.put_if_absent(b"ours", "receipt")
        assert faults.counts["lose PUT"] == 1
        assert store.read("receipt") == b"ours"


def test_a_large_file_arrives_though_its_last_reply_is_lost_and_is_read_though_a_part_breaks_off(
    tmp_path: Path,
) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(1 << 20) * 101)  # over twice the size of a part of an upload
    lost = Faults(seed=0, share=1, kinds=["lose"])
    cut = Faults(seed=0, share=1, kinds=["cut"])
    with s3_server("moto", tmp_path):
        with broken_connections(lost):
            Store("s3://test/run").put(source, "shard")
        with broken_connections(cut):
            copy = Store("s3://test/run").local_copy("shard", tmp_path / "scratch")
    assert digest(copy) == digest(source)
    assert lost.counts["lose POST"] >= 2, "an upload begins and ends with one"
    assert cut.counts["cut GET"] == 1


def test_a_command_whose_store_does_not_answer_says_so_in_one_line_and_exits_with_75(tmp_path: Path) -> None:
    gone = Faults(seed=0, share=0)
    gone.dead_after = 0
    with s3_server("rclone", tmp_path) as bucket, broken_connections(gone):
        command = [sys.executable, "-m", "dualtoken.jobs.scenes", TINY]
        command += ["--root", f"{bucket}/run", "--in-process"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=PROJECT)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert re.fullmatch(r"dualtoken: .*endpoint URL.*; try again\n", ended.stderr)
    # For the first file asked for: 5 times 5 tries of s3fs, each of them two requests of botocore.
    assert 1 < gone.requests <= 60
