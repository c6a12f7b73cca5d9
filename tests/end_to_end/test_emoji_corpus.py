"""Images that nobody here drew, from a URL table to token shards: every row is accounted for by its right name."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from tests.helpers.emoji import BAD, FOLDER, MISSING, served_emoji
from tests.helpers.loader_workers import loaded_keys
from tests.helpers.tiny_run import planned
from tests.helpers.token_datasets import ok_keys

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=MISSING)
LIMIT = 300
TINY = ["teacher.steps=2", "train.steps=2", "train.cpus_per_worker=1", "download.rows_per_shard=128"]


def test_every_row_of_a_real_table_is_kept_or_named(tmp_path: Path) -> None:
    table = tmp_path / "emoji.csv"
    with served_emoji(table, LIMIT) as rows:
        settings = [
            f"root={tmp_path / 'data'}",
            f"corpora.web.source.table={table}",
            "download.allow_private_addresses=true",
            *TINY,
        ]
        recipe = load_recipe("urls", settings)
        for command in ("download", "teacher", "filter", "targets", "train", "pretokenize"):
            run_command(command, recipe, LocalExecutor(), lambda _: None)
    download, filtered, tokens = (
        planned(recipe, step, "web") for step in ("download", "filter", "pretokenize")
    )
    assert download.manifest is not None
    assert download.manifest.rows_in == rows == LIMIT + sum(BAD.values())
    assert download.manifest.counts == {"ok": LIMIT, **BAD}
    assert filtered.manifest is not None
    assert sum(filtered.manifest.counts.values()) == LIMIT
    kept, stored = set[bytes](), list[bytes]()
    assert filtered.job is not None
    assert tokens.job is not None
    for unit in tokens.job.units:
        decision = read_table(filtered.job.store(), f"{unit.id}.parquet")
        kept |= set(decision.filter(decision["keep"])["key"].to_pylist())
        stored += read_data_shard(Path(tokens.job.folder) / f"data/{unit.id}.arrow")["key"].to_pylist()
    assert len(stored) == len(set(stored)) == len(kept)
    assert set(stored) == kept
    assert loaded_keys(tokens.job.folder) == [ok_keys(tokens.job)] * 2 == [Counter(stored)] * 2
    assert [finding for checked in verify(recipe.root) for finding in checked.findings] == []
    assert download.job is not None
    shards = [
        read_table(download.job.store(), f"{unit.id}.parquet", ["url", "reason"])
        for unit in download.job.units
    ]
    refused = {
        row["url"].rpartition("/")[2]: row["reason"]
        for row in pa.concat_tables(shards).to_pylist()
        if row["reason"]
    }
    assert refused == {
        **{f"gone-{number}.png": "http_404" for number in range(10)},
        **{f"page-{number}.html": "not_an_image" for number in range(2)},
        "cut.png": "truncated_image",
    }
