"""Batches, threads and damaged images change no codes of a unit, and crops say what they show."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_manifest, read_receipts
from dualtoken.pipelines.core.stage import StageJob, UnitOutput
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.crops import CROP_FIELDS
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard
from dualtoken.pipelines.images.tar_index import index_tar
from dualtoken.pipelines.inference.networks import StreamCodes, TokenizerRunner, best_device
from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens import pretokenize
from dualtoken.pipelines.tokens.pretokenize import Worker
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shards import (
    STREAMS,
    Ids,
    TokenShardWriter,
    codes_of,
    read_data_shard,
    schema_metadata,
)
from tests.helpers.tiny_run import LoadTiny, planned_job, tokens_job

CORPUS = "tiny-train"


@pytest.fixture(scope="module")
def tokenizer(finished: Recipe) -> TokenizerRunner:
    return TokenizerRunner(Path(planned_job(finished, "train").folder), best_device())


def first_unit(job: StageJob, scratch: Path) -> UnitOutput:
    """Do a job's first unit, whether it is done or not, and leave its files in scratch."""
    scratch.mkdir()
    return Worker(job).run(job.units[0], scratch)


@pytest.mark.parametrize(
    "settings", [("batch_size=1", "decode_threads=1"), ("batch_size=3", "decode_threads=3", "audit_rows=0")]
)
def test_batches_threads_and_audit_change_no_byte(
    settings: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    job = tokens_job(load_tiny(Path(finished.root), *(f"pretokenize.{one}" for one in settings)))
    assert job.folder == tokens_job(finished).folder
    output = first_unit(job, tmp_path / "again")
    for name in output.files:
        assert (tmp_path / "again" / name).read_bytes() == (Path(job.folder) / name).read_bytes()


def test_a_unit_begins_with_the_whole_batch_again(
    finished: Recipe, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tokens_job(load_tiny(Path(finished.root), "pretokenize.batch_size=4"))
    sizes = list[int]()

    class OnceFull(TokenizerRunner):
        """Had no room for the first batch, as beside another process that is gone by now."""

        def encode_levels(self, levels: torch.Tensor) -> StreamCodes:
            sizes.append(len(levels))
            if len(sizes) == 1:
                raise RuntimeError("CUDA error: out of memory")
            return super().encode_levels(levels)

    folder = Path(planned_job(finished, "train").folder)
    monkeypatch.setattr(pretokenize, "open_tokenizer", lambda _: OnceFull(folder, best_device()))
    worker = Worker(job)
    reached: list[int] = []
    for unit in job.units[:2]:
        (tmp_path / unit.id).mkdir()
        reached.append(worker.run(unit, tmp_path / unit.id).facts["batch_size"])
    rows = job.units[0].rows
    assert reached == [rows // 2, 4], "the receipt says how many images were encoded at once"
    assert sizes == [rows, *[rows // 2] * 2, *[1] * (rows % 2), job.units[1].rows]


@pytest.fixture
def damaged(tmp_path: Path, finished: Recipe) -> StageJob:
    """A job like the finished one, whose second image became garbage after it was scored."""
    job = tokens_job(finished)
    shutil.copytree(job.inputs[f"download/{CORPUS}"], tmp_path / "shards")
    tar = tmp_path / "shards" / f"{job.units[0].id}.tar"
    place = sorted(index_tar(tar).values())[1]
    data = bytearray(tar.read_bytes())
    data[place.offset + 40 : place.offset + place.size] = bytes(place.size - 40)
    tar.write_bytes(data)
    return replace(job, inputs={**job.inputs, f"download/{CORPUS}": str(tmp_path / "shards")})


def test_a_bad_image_is_one_row_of_the_ledger_and_its_neighbours_codes_stay(
    damaged: StageJob, tmp_path: Path, finished: Recipe
) -> None:
    output = first_unit(damaged, tmp_path / "with")
    data, meta = output.files
    assert output.ledger is not None
    ledger = output.ledger.to_pylist()
    assert [(row["status"], row["reason"]) for row in ledger[:3]] == [
        ("ok", ""),
        ("failed", "undecodable"),
        ("ok", ""),
    ]
    assert ledger[1]["detail"]
    folder = Path(tokens_job(finished).folder)
    before = read_data_shard(folder / data)
    after = read_data_shard(tmp_path / "with" / data)
    others = [0, *range(2, len(before))]
    assert after.equals(before.take(others))
    assert pq.read_table(tmp_path / "with" / meta).equals(pq.read_table(folder / meta).take(others))
    assert output.facts["rows_out_by_shard"] == {damaged.units[0].id: len(others)}


@pytest.mark.parametrize(
    ("name", "crops"),
    [("variant", "[{kind: center, flip: true}]"), ("teacher_similarity", "[{kind: center}]")],
)
def test_a_column_with_the_name_of_one_that_is_added_is_refused_before_any_image_is_encoded(
    name: str, crops: str, finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    images = planned_job(finished, "download", CORPUS)
    for suffix in ("tar", "parquet"):
        shutil.copyfile(f"{images.folder}/00000.{suffix}", tmp_path / f"00000.{suffix}")
    table = pq.read_table(tmp_path / "00000.parquet")
    pq.write_table(table.append_column(name, [[1] * len(table)]), tmp_path / "00000.parquet")
    job = tokens_job(load_tiny(Path(finished.root), f"pretokenize.crops={crops}"))
    job = replace(
        job, folder=str(tmp_path / "out"), inputs={**job.inputs, f"download/{CORPUS}": str(tmp_path)}
    )
    with pytest.raises(UserError, match=f"the images of tiny-train have a column '{name}'"):
        first_unit(job, tmp_path / "scratch")


CROPS = (
    "[{kind: center, flip: true}, {kind: grid, rows: 1, columns: 2, scale: 0.5}, "
    "{kind: random, number: 2, min_scale: 0.4}]"
)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory, finished: Recipe, load_tiny: LoadTiny) -> Recipe:
    root = tmp_path_factory.mktemp("cropped") / "copy"
    shutil.copytree(finished.root, root)
    recipe = load_tiny(root, f"pretokenize.crops={CROPS}")
    for command in ("pretokenize", "mllm", "examine", "report"):
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    return recipe


def test_every_variant_of_an_image_is_a_row_beside_its_crop(
    cropped: Recipe, tokenizer: TokenizerRunner, tmp_path: Path
) -> None:
    job = tokens_job(cropped)
    unit = job.units[1].id
    table = read_data_shard(Path(job.folder) / f"data/{unit}.arrow")
    meta = pq.read_table(Path(job.folder) / f"meta/{unit}.parquet")
    assert meta.schema.names[-7:] == ["teacher_similarity", *(field.name for field in CROP_FIELDS)]
    shard = open_image_shard(job.input("download"), unit, tmp_path)
    places = {key: row for row, key in enumerate(shard.keys)}
    rows = meta.to_pylist()
    assert table["key"].to_pylist() == [row["key"] for row in rows]
    assert [row["variant"] for row in rows] == [0, 1, 2, 3, 4, 5] * (len(rows) // 6)
    for number, row in enumerate(rows):
        left, top, width, height = (row[f"crop_{name}"] for name in ("left", "top", "width", "height"))
        part = decode_rgb(shard.image(places[row["key"]])).crop((left, top, left + width, top + height))
        if row["flipped"]:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        codes = tokenizer.encode([part])
        assert codes_of(table, "pixel")[number].tolist() == codes.pixel.reshape(-1).tolist(), row
        assert codes_of(table, "semantic")[number].tolist() == codes.semantic.reshape(-1).tolist(), row


def test_a_deep_check_encodes_crops_again_as_they_were_cut(cropped: Recipe) -> None:
    said: list[str] = []
    (checked,) = verify(tokens_job(cropped).folder)
    assert deep_verify(checked, DeepSettings(sample=60), said.append).findings == ()
    assert [line.partition(": ")[2].partition(" rows")[0] for line in said] == ["60"]


def test_the_first_variant_has_the_codes_of_the_default_and_the_dataset_another_folder(
    cropped: Recipe, finished: Recipe
) -> None:
    ours = tokens_job(cropped)
    whole = tokens_job(finished)
    assert ours.fingerprint != whole.fingerprint
    many = TokenDataset(ours.folder)
    one = TokenDataset(whole.folder)
    assert len(many) == 6 * len(one)
    firsts = many.read(np.arange(0, len(many), 6))
    assert (firsts.keys == one.read(np.arange(len(one))).keys).all()
    assert firsts.pixel is not None
    assert (firsts.pixel == one.read(np.arange(len(one))).pixel).all()
    assert many.captions(np.arange(6)) == one.captions(np.zeros(1, np.int64)) * 6


def test_samples_and_rows_are_counted_apart_where_there_are_crops(cropped: Recipe) -> None:
    job = tokens_job(cropped)
    manifest = read_manifest(job.store())
    assert manifest is not None
    assert manifest.details["rows"] == sum(manifest.units.values()) == 6 * manifest.counts["ok"]
    assert manifest.rows_in == sum(manifest.counts.values())
    index = pq.read_table(Path(job.folder) / "index.parquet").to_pylist()
    assert [row["rows"] for row in index] == [
        len(read_data_shard(Path(job.folder) / row["path"])) for row in index
    ]


def test_the_report_measures_each_held_out_image_once(cropped: Recipe, finished: Recipe) -> None:
    ours, theirs = (
        Path(planned_job(recipe, "report").folder) / "report.json" for recipe in (cropped, finished)
    )
    figures = [json.loads(path.read_text())["reconstruction"] for path in (ours, theirs)]
    assert figures[0] == figures[1]
    assert figures[0]["psnr_per_image"]


def test_receipts_say_where_a_units_time_went(finished: Recipe) -> None:
    for receipt in read_receipts(Store(tokens_job(finished).folder)).values():
        assert set(receipt.facts["seconds"]) == {
            "fetch",
            "wait",
            "encode",
            "write",
            "captions",
            "audit",
            "commit",
        }
        assert sum(receipt.facts["seconds"].values()) <= receipt.seconds + 0.01


def test_a_unit_written_beside_the_encoder_has_the_same_bytes_and_facts(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    job = tokens_job(load_tiny(Path(finished.root), "pretokenize.batch_size=1"))
    output = Worker(job, write_beside=True).run(job.units[0], tmp_path)
    before = read_receipts(Store(job.folder))[job.units[0].id]
    for name in output.files:
        assert (tmp_path / name).read_bytes() == (Path(job.folder) / name).read_bytes()
    differing = {"seconds", "batch_size"}
    assert output.facts["batch_size"] == 1
    assert {name: fact for name, fact in output.facts.items() if name not in differing} == {
        name: fact for name, fact in before.facts.items() if name not in differing
    }


def test_bfloat16_is_recorded_has_a_folder_of_its_own_and_mostly_the_same_codes(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    whole, job = (
        tokens_job(recipe)
        for recipe in (finished, load_tiny(Path(finished.root), "pretokenize.precision=bfloat16"))
    )
    assert job.fingerprint != whole.fingerprint
    (data, _) = first_unit(job, tmp_path / "half").files
    before = read_data_shard(Path(whole.folder) / data)
    after = read_data_shard(tmp_path / "half" / data)
    assert [schema_metadata(table.schema)["dualtoken.precision"] for table in (before, after)] == [
        "float32",
        "bfloat16",
    ]
    agreement = np.mean([(codes_of(before, stream) == codes_of(after, stream)).mean() for stream in STREAMS])
    assert 0.8 < agreement < 1


def test_an_open_tokenizer_leaves_no_tf32_to_a_gpu(finished: Recipe, tokenizer: TokenizerRunner) -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    Worker(tokens_job(finished))
    assert tokenizer.precision == "float32"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_full_disk_met_beside_the_encoder_fails_its_unit(
    tmp_path: Path, finished: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(TokenShardWriter):
        def append(self, keys: Sequence[bytes], semantic: Ids, pixel: Ids) -> None:
            raise OSError(28, f"no room for {len(keys)} rows of {semantic.shape} and {pixel.shape}")

    monkeypatch.setattr(pretokenize, "TokenShardWriter", FullDisk)
    job = tokens_job(finished)
    with pytest.raises(OSError, match="no room for"):
        Worker(job, write_beside=True).run(job.units[0], tmp_path)
