"""Real images, from a URL table to token shards: every row is accounted for by its right name."""

from collections import Counter
from pathlib import Path

import pytest

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from tests.helpers.damage import findings_below
from tests.helpers.emoji import BAD, FOLDER, MISSING, served_emoji
from tests.helpers.loader_workers import loaded_keys
from tests.helpers.tiny_run import planned, planned_job
from tests.helpers.token_datasets import ok_keys

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=MISSING)
LIMIT = 300
SMALL = ["teacher.steps=2", "train.steps=2", "train.cpus_per_worker=1", "download.rows_per_shard=128"]
REFUSED = {
    **{f"gone-{number}.png": "http_404" for number in range(10)},
    **{f"page-{number}.html": "not_an_image" for number in range(2)},
    "cut.png": "truncated_image",
}
"""Reasons of the bad images by name."""


def test_every_row_of_a_real_table_is_kept_or_named(tmp_path: Path) -> None:
    table = tmp_path / "emoji.csv"
    settings = [f"root={tmp_path / 'data'}", f"corpora.web.source.table={table}"]
    settings += ["download.allow_private_addresses=true", *SMALL]
    with served_emoji(table, LIMIT) as num_rows:
        recipe = load_recipe("urls", settings)
        for command in ("download", "teacher", "filter", "targets", "train", "pretokenize"):
            run_command(command, recipe, LocalExecutor(), lambda _: None)
    assert num_rows == LIMIT + sum(BAD.values())
    assert counts(recipe, "download") == {"ok": LIMIT, **BAD}
    assert refused(planned_job(recipe, "download", "web")) == REFUSED
    assert sum(counts(recipe, "filter").values()) == LIMIT

    tokens = planned_job(recipe, "pretokenize", "web")
    stored = stored_keys(tokens)
    assert set(stored.values()) == {1}
    assert stored == Counter(kept_keys(planned_job(recipe, "filter", "web"), tokens))
    assert ok_keys(tokens) == stored
    assert loaded_keys(tokens.folder) == [stored, stored]
    assert findings_below(recipe.root) == []


def counts(recipe: Recipe, step: str) -> dict[str, int]:
    manifest = planned(recipe, step, "web").manifest
    assert manifest is not None
    assert manifest.rows_in == sum(manifest.counts.values())
    return manifest.counts


def refused(download: StageJob) -> dict[str, str]:
    """Return the names of the images that were not downloaded, with the reasons."""
    reasons: dict[str, str] = {}
    for unit in download.units:
        for row in read_table(download.store(), f"{unit.id}.parquet", ["url", "reason"]).to_pylist():
            if row["reason"]:
                name = row["url"].rpartition("/")[2]
                reasons[name] = row["reason"]
    return reasons


def kept_keys(decision: StageJob, tokens: StageJob) -> list[bytes]:
    """Return the keys that the filter keeps.

    It writes a file for each of the tokens' units, in one unit of its own.
    """
    keys: list[bytes] = []
    for unit in tokens.units:
        table = read_table(decision.store(), f"{unit.id}.parquet")
        keys += table.filter(table["keep"])["key"].to_pylist()
    return keys


def stored_keys(tokens: StageJob) -> Counter[bytes]:
    """Return the keys of all token shards."""
    keys: Counter[bytes] = Counter()
    for unit in tokens.units:
        shard = read_data_shard(Path(tokens.folder) / f"data/{unit.id}.arrow")
        keys.update(shard["key"].to_pylist())
    return keys
