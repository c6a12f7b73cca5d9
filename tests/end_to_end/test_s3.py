"""The whole chain on S3 gives the bytes of the whole chain on disk."""

from collections import Counter
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import commands
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from tests.helpers.damage import findings_below
from tests.helpers.loader_workers import loaded_keys
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import TINY, root_hashes
from tests.helpers.token_datasets import key_of, write_tokens


def test_a_run_on_s3_gives_the_bytes_of_one_on_disk(tmp_path: Path, finished: Recipe) -> None:
    messages: list[str] = []
    with s3_server("rclone", tmp_path) as bucket:
        recipe = load_recipe(TINY, [f"root={bucket}/run"])
        for command in commands():
            run_command(command, recipe, LocalExecutor(), messages.append)
        hashes_on_s3 = root_hashes(recipe)
        assert findings_below(recipe.root) == []
    assert hashes_on_s3 == root_hashes(finished)
    assert any("ignores If-None-Match" in message for message in messages)


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [10**7, 50_000])
def test_a_loader_with_workers_reads_a_dataset_on_s3_each_row_once(max_bytes: int, tmp_path: Path) -> None:
    local = Store(write_tokens(tmp_path / "local", 1000, rows_per_shard=50))
    expected = Counter(key_of("a", row) for row in range(1000))
    with s3_server("rclone", tmp_path / "server") as bucket:
        remote = Store(f"{bucket}/a")
        for name, _ in local.files():
            remote.put(Path(local.path(name)), name)
        cache = ShardCache(tmp_path / "cache", max_bytes=max_bytes)
        assert loaded_keys(remote.url, num_workers=2, cache=cache) == [expected, expected]
