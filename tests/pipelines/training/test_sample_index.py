"""The index of training samples: exact counts, built once, and never another corpus's."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import KEY_BYTES, key_fraction, key_fractions, sample_key
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.training.sample_index import SampleIndex, open_sample_index
from tests.helpers.tiny_run import planned_job
from tests.helpers.training_shards import CORPUS, training_job

SHARDS = (5, 0, 9, 3)
FRACTION = "heldout={kind: fraction, fraction: 0.4}"


def counts(index: SampleIndex) -> list[tuple[str, int]]:
    return [(index.name(number).shard, index.num_samples(number)) for number in range(len(index))]


def test_a_shard_counts_by_what_its_stage_passed_on_and_one_without_samples_is_left_out(
    tmp_path: Path,
) -> None:
    job = training_job(tmp_path, SHARDS)
    index = open_sample_index(job, "download", tmp_path / "scratch")
    assert counts(index) == [("00000", 5), ("00002", 9), ("00003", 3)]
    assert index.name(1).corpus == CORPUS
    assert index.num_rows == 17


def test_of_a_corpus_with_a_held_out_fraction_the_keys_decide(tmp_path: Path) -> None:
    job = training_job(tmp_path, (50, 30), FRACTION)
    index = open_sample_index(job, "download", tmp_path / "scratch")
    kept = [key_fraction(sample_key(CORPUS, number)) >= 0.4 for number in range(80)]
    expected = [("00000", sum(kept[:50])), ("00001", sum(kept[50:]))]
    assert 0 < sum(kept) < 80
    assert counts(index) == expected * 2  # the recipe's other corpus has the same folder here


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), max_size=20))
def test_fractions_of_many_keys_are_those_of_each(keys: list[bytes]) -> None:
    assert key_fractions(keys).tolist() == [key_fraction(key) for key in keys]


def test_an_index_is_built_once_and_built_again_where_it_is_cut(tmp_path: Path) -> None:
    job = training_job(tmp_path, SHARDS, FRACTION)
    first = open_sample_index(job, "download", tmp_path / "scratch")
    (file,) = Path(job.folder).glob("logs/samples-*.arrow")
    ledgers = tmp_path / "shards/ledger"
    moved = ledgers.rename(tmp_path / "moved")
    assert counts(open_sample_index(job, "download", tmp_path / "scratch")) == counts(first)
    moved.rename(ledgers)
    file.write_bytes(file.read_bytes()[:100])
    assert counts(open_sample_index(job, "download", tmp_path / "scratch")) == counts(first)


def test_a_changed_corpus_or_another_fraction_has_another_index(tmp_path: Path) -> None:
    job = training_job(tmp_path, SHARDS)
    first = open_sample_index(job, "download", tmp_path / "scratch")
    manifest = tmp_path / "shards/manifest.json"
    changed = Manifest.from_bytes(manifest.read_bytes()).model_copy(
        update={"root_hash": "f" * 64, "units": {"00000": 4}}
    )
    manifest.write_bytes(changed.to_bytes())
    second = open_sample_index(job, "download", tmp_path / "scratch")
    assert counts(second) == [("00000", 4)]
    assert second.identity != first.identity
    assert len(list(Path(job.folder).glob("logs/samples-*.arrow"))) == 2


def test_training_on_targets_counts_those_that_have_targets(finished: Recipe, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "data")
    job = planned_job(finished, "train")
    job = replace(job, folder=str(tmp_path / "train"))
    downloaded = open_sample_index(job, "download", tmp_path / "scratch")
    with_targets = open_sample_index(job, "targets", tmp_path / "scratch")
    assert downloaded.num_rows == 40
    assert with_targets.num_rows == pytest.approx(36, abs=1)
