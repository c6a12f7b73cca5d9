"""Evaluations: the numbers are what plain code gives, in any order and after any kill; mistakes are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dualtoken.infra.storage import Store
from dualtoken.model.metrics.arrays import psnr
from dualtoken.pipelines.config.evaluation import EvaluationConfig, EvaluationProtocol
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation import run_evaluation
from dualtoken.pipelines.evaluation.closeness import through_jpeg
from dualtoken.pipelines.evaluation.evaluated_batch import EvaluatedBatch, EvaluatedSample
from dualtoken.pipelines.evaluation.evaluations import read_evaluation, read_scores
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace, model_digest
from dualtoken.pipelines.evaluation.selection import selected
from dualtoken.pipelines.evaluation.sets import read_unit
from dualtoken.pipelines.evaluation.summary import SCORES, SUMMARY, EvaluationSummary, SetResult
from dualtoken.pipelines.inference.networks import TeacherRunner, TokenizerRunner
from tests.helpers.evaluated import (
    CLASSES,
    Backwards,
    StopsAfter,
    canary,
    config_of,
    evaluated,
    write_folder,
)

NUM = 24
EVERYTHING = [
    "psnr",
    "ssim",
    "idempotence_pixel",
    "jpeg_agreement_semantic",
    "batch_agreement_pixel",
    "usage_pixel",
    "perplexity_semantic",
    "bits_per_pixel",
    "zero_shot",
    "zero_shot_teacher",
    "image_to_text",
    "text_to_image_teacher",
    "knn",
    "linear_probe_teacher",
]
SCENES = ["objects_read", "objects_read_original", "attribute_colour", "attribute_shape_teacher"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return canary(tmp_path_factory.mktemp("canary"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "folder", NUM)


def config_for(root: Path, images: Path, **protocol: object) -> EvaluationConfig:
    sets = {
        "colours": {
            "kind": "folder",
            "folder": str(images),
            "label_column": "colour",
            "class_names": list(CLASSES),
        }
    }
    protocols = {"all": {"metrics": EVERYTHING, "batch_size": 4, "neighbours": 3} | protocol}
    return config_of(root, sets, protocols, unit_rows=7)


def stored(root: Path) -> dict[str, bytes]:
    """Return the bytes of every score table and result below a root."""
    files = [*root.rglob(SCORES), *root.rglob("result.json")]
    return {file.name: file.read_bytes().replace(str(root).encode(), b"ROOT") for file in files}


def table_of(result: SetResult) -> pa.Table:
    return read_scores(result)


def test_numbers_are_those_of_plain_code(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    (result,) = evaluated(config_for(tmp_path, images), model).summary.results
    table = table_of(result)
    tokenizer = TokenizerRunner(Path(model.folder.root), torch.device("cpu"))
    assert model.teacher is not None
    teacher = TeacherRunner(Path(model.teacher.root), torch.device("cpu"))
    set_folder = next((tmp_path / "sets/colours").iterdir())
    rows: list[dict[str, Any]] = []
    for unit in range(4):
        rows += read_unit(Store(str(set_folder)), f"{unit:05d}", tmp_path).to_pylist()
    assert [row["key"] for row in rows] == table["key"].to_pylist()
    class_texts = teacher.texts([f"a photo of {name}." for name in CLASSES])
    for row, psnr_found, is_right in zip(
        rows, table["psnr"].to_pylist(), table["zero_shot_teacher"].to_pylist(), strict=True
    ):
        picture = Image.open(next(images.glob(row["name"]))).convert("RGB")
        # In a batch of the protocol's size, which is what rounding depends on.
        levels = tokenizer.levels([picture] * 4)
        again = tokenizer.decode(tokenizer.encode_levels(levels).pixel)
        original = levels[0].permute(1, 2, 0).numpy()
        assert psnr_found == pytest.approx(psnr(again[0].permute(1, 2, 0).numpy(), original), abs=1e-9)
        nearest = (teacher.images(teacher.levels([picture])) @ class_texts.T).argmax().item()
        assert is_right == float(nearest == row["label"])
    assert result.metrics["psnr"].value == pytest.approx(np.mean(table["psnr"].to_numpy()), abs=1e-12)
    assert result.metrics["psnr"].n == NUM
    halves = table["knn"].null_count
    assert result.metrics["knn"].n == NUM - halves
    assert 0 < halves < NUM


def test_scenes_are_read_and_told_apart(model: ModelPlace, tmp_path: Path) -> None:
    sets = {"s": {"kind": "scenes", "num_images": 8}}
    config = config_of(tmp_path, sets, {"p": {"metrics": SCENES, "batch_size": 8}})
    (result,) = evaluated(config, model).summary.results
    assert result.metrics["objects_read_original"].value > 0.95
    assert result.metrics["objects_read"].value < 0.5, "nothing taught the canary to draw"
    assert set(table_of(result)["attribute_colour"].to_pylist()) <= {0.0, 0.5, 1.0}


def test_bits_depend_on_no_order_and_no_kill(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    whole = evaluated(config_for(tmp_path / "whole", images), model)
    backwards = evaluated(config_for(tmp_path / "backwards", images), model, Backwards())
    assert stored(tmp_path / "backwards") == stored(tmp_path / "whole")
    killed = config_for(tmp_path / "killed", images)
    for num_units in (0, 1, 1, 1):
        with pytest.raises(KeyboardInterrupt):
            evaluated(killed, model, StopsAfter(num_units))
        assert not stored(tmp_path / "killed")
    evaluated(killed, model, StopsAfter(1))
    assert stored(tmp_path / "killed") == stored(tmp_path / "whole")
    assert whole.summary.evaluation == backwards.summary.evaluation


def test_a_sample_does_not_depend_on_those_beside_it(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    wide = config_for(tmp_path / "a", images)
    narrow = wide.model_copy(update={"unit_rows": 5, "root": str(tmp_path / "b")})
    first = table_of(evaluated(wide, model).summary.results[0])
    second = table_of(evaluated(narrow, model).summary.results[0])
    assert first == second


def test_a_last_batch_is_as_large_as_the_others(model: ModelPlace) -> None:
    tokenizer = TokenizerRunner(Path(model.folder.root), torch.device("cpu"))
    sample = EvaluatedSample(b"0" * 16, Image.new("RGB", (64, 64), "teal"), [], None, None, "")
    batch = EvaluatedBatch([sample] * 3, tokenizer, EvaluationProtocol(metrics=("psnr",), batch_size=8))
    assert (batch.size, len(batch.originals), len(batch.codes.pixel)) == (3, 8, 8)


def test_what_is_done_is_not_done_again_unless_it_is_measured_anew(
    model: ModelPlace, images: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, images)
    first = evaluated(config, model)
    nothing_runs = StopsAfter(0)
    assert evaluated(config, model, nothing_runs).summary == first.summary
    with pytest.raises(KeyboardInterrupt):
        evaluated(config, model, nothing_runs, salt="2026-11-29")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_evaluation, "code_hash", lambda *_: "0" * 64)
        with pytest.raises(KeyboardInterrupt):
            evaluated(config, model, nothing_runs)
    salted = evaluated(config, model, salt="2026-11-29")
    assert salted.summary.evaluation != first.summary.evaluation
    assert salted.summary.results[0].metrics == first.summary.results[0].metrics


def test_weights_written_over_are_another_model(model: ModelPlace, tmp_path: Path) -> None:
    place = canary(tmp_path / "copy")
    assert model_digest(place.folder) == model_digest(model.folder)
    weights = Path(place.folder.root) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert model_digest(place.folder) != model_digest(model.folder)


def test_an_image_that_gives_no_picture_is_left_out_and_counted(model: ModelPlace, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 6)
    (images / "002.png").write_bytes((images / "002.png").read_bytes()[:200])
    config = config_of(
        tmp_path / "root",
        {"s": {"kind": "folder", "folder": str(images)}},
        {"p": {"metrics": ["psnr", "image_to_text"], "batch_size": 4}},
    )
    summary = evaluated(config, model).summary
    assert summary.results[0].metrics["image_to_text"].n == 5
    assert summary.notes == ("s.p: 1 of 6 images left out, failed:undecodable",)


def test_clusters_widen_the_interval(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    def interval(root: Path, **columns: str) -> float:
        sets = {"s": {"kind": "folder", "folder": str(images)} | columns}
        config = config_of(root, sets, {"p": {"metrics": ["psnr"], "batch_size": 8}})
        value = evaluated(config, model).summary.results[0].metrics["psnr"]
        assert value.low is not None
        assert value.high is not None
        return value.high - value.low

    # All images of a colour in one cluster: three independent ones in place of 24.
    assert interval(tmp_path / "b", cluster_column="colour") > 2 * interval(tmp_path / "a")


def test_a_protocol_decides_numbers_and_hash(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    plain = evaluated(config_for(tmp_path, images), model).summary.results[0]
    for change in ({"cast": "truncate"}, {"jpeg_quality": 30}, {"view": {"kind": "grid"}}):
        other = evaluated(config_for(tmp_path, images, **change), model).summary.results[0]
        assert other.protocol_hash != plain.protocol_hash, change
        assert other.metrics["psnr"].value != plain.metrics["psnr"].value, change
    fewer = evaluated(config_for(tmp_path, images, metrics=["zero_shot", "psnr"]), model).summary.results[0]
    assert fewer.protocol_hash == plain.protocol_hash, "each metric is computed by itself"


def test_jpeg_is_that_of_the_quality() -> None:
    levels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    coarse = (through_jpeg(levels, 10).float() - levels.float()).abs().mean()
    fine = (through_jpeg(levels, 95).float() - levels.float()).abs().mean()
    assert 0 < fine < coarse


def test_mistakes_are_told_in_one_line(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, images)

    def error_of(config: EvaluationConfig, model: ModelPlace = model) -> str:
        with pytest.raises(UserError) as error:
            evaluated(config, model)
        assert "\n" not in str(error.value)
        return str(error.value)

    sets = {"u": {"kind": "scenes", "num_images": 4}}
    unlabelled = config.model_copy(update={"sets": config_of(tmp_path, sets, config.protocols).sets})
    assert "zero_shot needs labels, and the set u has captions, scenes" in error_of(unlabelled)
    assert "no teacher is known" in error_of(config, model._replace(teacher=None))
    assert "has no config.json" in error_of(
        config_for(tmp_path, images, metrics=["psnr"]), ModelPlace("x", Store(str(images)), None)
    )
    few = config_of(
        tmp_path,
        {"s": {"kind": "scenes", "num_images": 4}},
        {"p": {"metrics": ["fd_teacher"]}},
    )
    assert "fd_teacher" in error_of(few)
    with pytest.raises(UserError, match="--set colour is not there: did you mean colours"):
        selected(config, ["colour"], [])


def test_a_summary_reads_back(model: ModelPlace, images: Path, tmp_path: Path) -> None:
    done = evaluated(config_for(tmp_path, images), model)
    assert read_evaluation(done.folder.url).summary == done.summary
    assert (Path(done.folder.root) / "README.md").read_text().startswith("---\nmodel-index:")
    assert pq.read_table(Path(done.summary.results[0].scores) / SCORES).num_rows == NUM
    values = json.loads(done.summary.model_dump_json())
    assert EvaluationSummary.model_validate(values) == done.summary
    with pytest.raises(UserError, match=f"has no {SUMMARY}"):
        read_evaluation(str(images))
