"""A token dataset's card says what its manifest, its inputs and its meta files say."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_manifest, read_receipts
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.totals import sum_receipts
from dualtoken.pipelines.tokens.card import card
from dualtoken.pipelines.tokens.facts import TokenDetails
from tests.helpers.tiny_run import LoadTiny, tokens_job


def test_the_card_is_written_with_the_dataset_and_counts_what_it_holds(finished: Recipe) -> None:
    job = tokens_job(finished)
    manifest = read_manifest(job.store())
    assert manifest is not None
    text = job.store().read("README.md").decode()
    assert f"{manifest.details['rows']:,} rows of image codes" in text
    assert f"weights with the SHA-256 `{manifest.details['tokenizer']['sha256']}`" in text
    assert "| semantic | 4 x 4 x 2 | 16 | 128 |" in text
    rows = dict(re.findall(r"^\| (download|score|filter|pretokenize) \| (.+) \|$", text, re.MULTILINE))
    assert rows["download"] == "40 | 40 | none"
    kept = manifest.details["rows"]
    assert rows["filter"].startswith(f"40 | {kept} | ")
    assert sum(map(int, re.findall(r"(\d+) rejected", rows["filter"]))) == 40 - kept
    assert "Not known: the corpus's table has no license column" in text


@pytest.mark.parametrize("crops", [1, 2])
def test_licenses_are_counted_over_all_shards_once_for_each_image_the_most_frequent_first(
    crops: int, finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    job = tokens_job(finished)
    recipe = load_tiny(
        Path(finished.root), *([] if crops == 1 else ["pretokenize.crops=[{kind: center, flip: true}]"])
    )
    manifest, receipts = read_manifest(job.store()), read_receipts(job.store())
    assert manifest is not None
    expected = {"cc-by": 0, "none given": 0}
    (tmp_path / "meta").mkdir()
    for unit in receipts:
        table = pq.read_table(f"{job.folder}/meta/{unit}.parquet")
        licenses = ["cc-by" if row < 3 else None for row in range(len(table))]
        expected["cc-by"] += min(3, len(table))
        expected["none given"] += max(0, len(table) - 3)
        table = table.append_column("license", [licenses])
        variants = [table.append_column("variant", [[variant] * len(table)]) for variant in range(crops)]
        pq.write_table(pa.concat_tables(variants) if crops > 1 else table, tmp_path / f"meta/{unit}.parquet")
    moved = StageJob(job.stage, job.corpus, recipe, str(tmp_path), job.fingerprint, job.inputs, job.units)
    found = re.findall(
        r"^\| (cc-by|none given) \| (\d+) \|$",
        card(moved, TokenDetails.of(manifest), sum_receipts(job.store(), receipts)),
        re.MULTILINE,
    )
    assert found == [(name, str(count)) for name, count in expected.items()]
    assert Store(str(tmp_path)).exists("README.md") is False
