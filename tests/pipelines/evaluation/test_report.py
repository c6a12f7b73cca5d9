"""What a report is made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.config.evaluation import EvaluationConfig, EvaluationProtocol, MetricName, ShardsSet
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.evaluation.evaluations import read_scores
from dualtoken.pipelines.evaluation.report import shown_recipe
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace, run_evaluation
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.tokens.shards import data_path, read_data_shard
from tests.helpers.tiny_run import LoadTiny, planned_job, tokens_job

METRICS: tuple[MetricName, ...] = (
    "psnr",
    "ssim",
    "attribute_shape",
    "attribute_colour_teacher",
    "image_to_text",
    "image_to_text_teacher",
)


def test_the_recipe_in_a_report_shows_no_secret_of_a_url(tmp_path: Path, load_tiny: LoadTiny) -> None:
    table = "https://reader:PASSW0RD@host/t.csv?Signature=S1GNED"
    shown = shown_recipe(load_tiny(tmp_path, f"corpora.tiny-train.source={{kind: urls, table: '{table}'}}"))
    assert "table: https://host/t.csv\n" in shown
    assert "PASSW0RD" not in shown
    assert "S1GNED" not in shown


def test_the_figures_of_a_report_are_those_of_an_evaluation_of_the_same_images(
    finished: Recipe, tmp_path: Path
) -> None:
    report: dict[str, Any] = json.loads(
        (Path(planned_job(finished, "report").folder) / "report.json").read_text()
    )
    keys = _keys_of_tokens(finished)
    scores = _evaluated(finished, tmp_path)
    of_key = {row["key"]: row for row in scores.to_pylist()}
    rows = [of_key[key] for key in keys]
    assert report["reconstruction"]["psnr_per_image"] == [row["psnr"] for row in rows]
    assert report["reconstruction"]["ssim_per_image"] == [row["ssim"] for row in rows]
    shape, colour, _ = report["zero_shot"]["attributes"]
    assert shape["quantised"] == np.mean([row["attribute_shape"] for row in rows])
    assert colour["teacher"] == np.mean([row["attribute_colour_teacher"] for row in rows])
    if len(rows) == len(of_key):  # each caption is compared with all others
        retrieval = report["retrieval"]
        assert retrieval["quantised"] == np.mean([row["image_to_text"] for row in rows])
        assert retrieval["teacher"] == np.mean([row["image_to_text_teacher"] for row in rows])


def _keys_of_tokens(recipe: Recipe) -> list[bytes]:
    """Return the keys of the held-out samples that reached the token shards, in their order."""
    job = tokens_job(recipe, "tiny-heldout")
    manifest = read_manifest(job.store())
    assert manifest is not None
    keys: list[bytes] = []
    for unit in manifest.units:
        keys += read_data_shard(Path(job.folder) / data_path(unit))["key"].to_pylist()
    return keys


def _evaluated(recipe: Recipe, root: Path) -> pa.Table:
    """Return the scores of the same run's tokenizer on its held-out images, as `evaluate` makes them."""
    job = planned_job(recipe, "report")
    config = EvaluationConfig(
        name="same",
        root=str(root),
        sets={"images": ShardsSet(kind="shards", folder=job.input("download", "tiny-heldout").url)},
        protocols={"all": EvaluationProtocol(metrics=METRICS, batch_size=recipe.report.batch_size)},
        cluster=recipe.cluster,
    )
    model = ModelPlace("tiny", job.input("train"), job.input("teacher"))
    evaluated = run_evaluation(config, model, LocalExecutor(), lambda _: None)
    return read_scores(evaluated.summary.results[0])
