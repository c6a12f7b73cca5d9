"""Token shards: what they hold, and that damage is loud."""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_manifest, read_receipts
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard
from dualtoken.pipelines.inference.networks import TokenizerRunner, best_device
from dualtoken.pipelines.tokens.facts import TokenizerIdentity
from dualtoken.pipelines.tokens.shards import (
    ROWS_PER_BATCH,
    TokenShardWriter,
    codes_of,
    read_data_shard,
    require_finished,
    token_schema,
    write_data_shard,
)
from tests.helpers.loader_workers import loaded_keys
from tests.helpers.tiny_run import planned, planned_job, tokens_job
from tests.helpers.token_datasets import ok_keys

CORPUS = "tiny-train"

TOKENIZER = TokenizerIdentity("f", "s")


@pytest.fixture
def tokens(finished: Recipe) -> Store:
    job = tokens_job(finished)
    return job.store()


def test_a_shard_has_the_columns_and_metadata_of_the_format(tokens: Store, finished: Recipe) -> None:
    table = read_data_shard(Path(tokens.path("data/00000.arrow")))
    codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), 4 * 4 * 2)
    assert table.schema.names == ["key", "semantic", "pixel"]
    assert table.schema.types == [pa.binary(16), codes, codes]
    assert not any(field.nullable for field in table.schema)
    metadata = {
        name.decode().removeprefix("dualtoken."): value.decode()
        for name, value in table.schema.metadata.items()
    }
    trained = planned(finished, "train").manifest
    assert trained is not None
    assert metadata.pop("tokenizer_sha256")
    assert metadata == {
        "schema_version": "1",
        "tokenizer_fingerprint": trained.fingerprint,
        "preprocessing": "RGB over white, shorter side to 32 bicubic, centre crop, [-1, 1]",
        "grid": "4x4",
        "depth": "2",
        "semantic_codes": "16",
        "pixel_codes": "16",
        "order": "position-major, depth-minor",
        "precision": "float32",
    }


def test_token_rows_are_exactly_the_kept_samples_in_order(tokens: Store, finished: Recipe) -> None:
    decision = planned_job(finished, "filter", CORPUS)
    manifest = read_manifest(tokens)
    assert manifest is not None
    for shard in manifest.units:
        kept = pq.read_table(decision.store().path(f"{shard}.parquet"))
        keys = read_data_shard(Path(tokens.path(f"data/{shard}.arrow")))["key"].to_pylist()
        assert keys == kept.filter(kept["keep"])["key"].to_pylist()
        meta = pq.read_table(tokens.path(f"meta/{shard}.parquet"))
        assert keys == meta["key"].to_pylist()
        assert {"caption", "url", "original_width", "teacher_similarity"} <= set(meta.column_names)


def test_stored_codes_are_what_the_saved_tokenizer_says_of_each_image_alone(
    tokens: Store, finished: Recipe, tmp_path: Path
) -> None:
    model = planned(finished, "train").job
    images = planned(finished, "download", CORPUS).job
    assert model is not None
    assert images is not None
    network = TokenizerRunner(Path(model.folder), best_device())
    assert isinstance(network.network, DualTokenizer)
    table = read_data_shard(Path(tokens.path("data/00000.arrow")))
    shard = open_image_shard(images.store(), "00000", tmp_path)
    places = {key: row for row, key in enumerate(shard.keys)}
    for row, key in enumerate(table["key"].to_pylist()):
        codes = network.encode([decode_rgb(shard.image(places[key]))])
        assert codes_of(table, "semantic")[row].tolist() == codes.semantic.reshape(-1).tolist()
        assert codes_of(table, "pixel")[row].tolist() == codes.pixel.reshape(-1).tolist()


def test_the_index_repeats_the_receipts(tokens: Store) -> None:
    index = pq.read_table(tokens.path("index.parquet")).to_pylist()
    receipts = read_receipts(tokens)
    assert [row["shard"] for row in index] == list(receipts)
    for row in index:
        file = next(file for file in receipts[row["shard"]].files if file.name == row["path"])
        assert (row["bytes"], row["sha256"], row["xxh3_128"]) == (file.bytes, file.sha256, file.xxh3_128)
        assert row["rows"] == receipts[row["shard"]].rows_out
        assert len(row["semantic_usage"]) == 2
    manifest = read_manifest(tokens)
    assert manifest is not None
    assert manifest.details["rows"] == sum(row["rows"] for row in index) == 36


def test_codes_survive_batches_and_a_cut_file_is_refused(tmp_path: Path, finished: Recipe) -> None:
    rows = ROWS_PER_BATCH + 3
    width = 32
    generator = np.random.default_rng(0)
    semantic, pixel = (generator.integers(0, 65536, (rows, width)).astype(np.uint16) for _ in range(2))
    keys = [row.to_bytes(16, "big") for row in range(rows)]
    path = tmp_path / "data/00000.arrow"
    write_data_shard(path, token_schema(finished.tokenizer, TOKENIZER, "as it is"), keys, semantic, pixel)
    table = read_data_shard(path)
    assert (codes_of(table, "semantic") == semantic).all()
    assert (codes_of(table, "pixel") == pixel).all()
    with pa.memory_map(str(path)) as source:
        assert [pa.ipc.open_file(source).get_batch(at).num_rows for at in range(2)] == [ROWS_PER_BATCH, 3]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(pa.ArrowInvalid):
        read_data_shard(path)


def test_rows_that_come_in_pieces_make_the_same_file_and_its_checksums_are_known_at_once(
    tmp_path: Path, finished: Recipe
) -> None:
    rows = 3 * ROWS_PER_BATCH + 7
    width = 32
    semantic, pixel = np.random.default_rng(0).integers(0, 65536, (2, rows, width)).astype(np.uint16)
    keys = [row.to_bytes(16, "big") for row in range(rows)]
    schema = token_schema(finished.tokenizer, TOKENIZER, "as it is")
    write_data_shard(tmp_path / "whole.arrow", schema, keys, semantic, pixel)
    cuts = [0, 1, 65, 65, 129, ROWS_PER_BATCH, ROWS_PER_BATCH + 9, 2 * ROWS_PER_BATCH + 20, rows]
    with TokenShardWriter(tmp_path / "pieces.arrow", schema) as writer:
        for first, last in pairwise(cuts):
            writer.append(keys[first:last], semantic[first:last], pixel[first:last])
    assert (tmp_path / "pieces.arrow").read_bytes() == (tmp_path / "whole.arrow").read_bytes()
    assert writer.digest == digest(tmp_path / "pieces.arrow")
    assert writer.rows == rows


def test_a_shard_whose_writing_was_cut_short_is_refused(tmp_path: Path, finished: Recipe) -> None:
    codes = np.zeros((300, 32), np.uint16)
    schema = token_schema(finished.tokenizer, TOKENIZER, "as it is")
    with suppress(KeyError), TokenShardWriter(tmp_path / "a.arrow", schema) as writer:
        writer.append([b"k" * 16] * 300, codes, codes)
        raise KeyError
    assert (tmp_path / "a.arrow").stat().st_size > ROWS_PER_BATCH * 2 * 32 * 2
    with pytest.raises(pa.ArrowInvalid):
        read_data_shard(tmp_path / "a.arrow")


def test_an_empty_shard_reads_as_no_rows(tmp_path: Path, finished: Recipe) -> None:
    none = np.zeros((0, 32), np.uint16)
    write_data_shard(
        tmp_path / "a.arrow", token_schema(finished.tokenizer, TOKENIZER, "as it is"), [], none, none
    )
    assert codes_of(read_data_shard(tmp_path / "a.arrow"), "pixel").shape == (0, 32)


@pytest.mark.parametrize("corpus", ["tiny-train", "tiny-heldout"])
def test_loaders_give_each_scene_that_the_ledger_calls_ok_once(corpus: str, finished: Recipe) -> None:
    job = tokens_job(finished, corpus)
    assert (ok := ok_keys(job))
    assert loaded_keys(job.folder) == [ok, ok]


def test_a_reader_refuses_another_stages_folder_by_the_stages_name(finished: Recipe) -> None:
    scores = planned_job(finished, "score", "tiny-train")
    with pytest.raises(
        ValueError,
        match=r"is a folder of the stage score: give one of pretokenize, <corpus>/tokens/<fingerprint>$",
    ):
        require_finished(scores.store())


def test_a_reader_refuses_what_is_unfinished(tmp_path: Path, tokens: Store) -> None:
    assert require_finished(tokens).details["schema_version"] == 1
    with pytest.raises(ValueError, match="holds no token dataset"):
        require_finished(Store(str(tmp_path)))
