"""Image shards: repeatable, readable by webdataset, and img2dataset's own are readable by us."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shards import (
    FAILED_TO_DOWNLOAD,
    SUCCESS,
    ImageShard,
    ImageShardWriter,
    ShardRow,
)
from tests.helpers.image_shards import png_of_red, write_img2dataset_shard

MISSING = (1, 5, 9)
"""Rows of our own shard that have no image."""
PRESENT = (0, 2, 3, 4, 6, 7, 8, 10, 11)


def write_ours(folder: Path, rows: int = 12) -> None:
    folder.mkdir()
    with ImageShardWriter(folder, "00003", "png", pa.schema([pa.field("license", pa.string())])) as writer:
        for number in range(rows):
            url = f"http://h/{number}"
            key = sample_key("c", number)
            if number in MISSING:
                missing = ShardRow(url, "", key, FAILED_TO_DOWNLOAD, "http_404", "Not Found")
                writer.write(missing, None, {"license": "cc0"})
            else:
                sizes = (8, 8, 80 + number, 90)
                row = ShardRow(url, f"caption {number} ü", key, SUCCESS, "", None, *sizes, "0a")
                writer.write(row, png_of_red(number), {"license": "cc0"})


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write_ours(tmp_path / "a")
    write_ours(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["00003.parquet", "00003.tar", "00003_stats.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a/00003.tar") as tar:
        members = tar.getmembers()
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "dualtoken")
    first_row = ["000030000.json", "000030000.png", "000030000.txt"]
    third_row = ["000030002.json", "000030002.png", "000030002.txt"]
    assert [member.name for member in members[:6]] == first_row + third_row


def test_the_table_has_a_row_per_input_and_the_statistics_count_them(tmp_path: Path) -> None:
    write_ours(tmp_path / "a")
    table = pq.read_table(tmp_path / "a/00003.parquet")
    assert table.num_rows == 12
    assert table["status"].to_pylist().count("success") == 9
    assert table["reason"].to_pylist()[:3] == ["", "http_404", ""]
    assert table["key"].to_pylist() == [f"00003{number:04d}" for number in range(12)]
    assert set(table["license"].to_pylist()) == {"cc0"}
    stats = json.loads((tmp_path / "a/00003_stats.json").read_text())
    assert stats == {
        "count": 12,
        "successes": 9,
        "failed_to_download": 3,
        "failed_to_resize": 0,
        "status_dict": {"success": 9, "http_404": 3},
    }


def test_rows_are_read_at_random(tmp_path: Path) -> None:
    write_ours(tmp_path / "a")
    with ImageShard(tmp_path / "a/00003.tar", tmp_path / "a/00003.parquet") as shard:
        assert len(shard) == 9
        assert shard.keys == [sample_key("c", number) for number in PRESENT]
        assert shard.captions == [f"caption {number} ü" for number in PRESENT]
        assert shard.original_sizes[0] == (80, 90)
        for row in (8, 0, 4):
            assert shard.image(row) == png_of_red(PRESENT[row])


def test_webdataset_reads_ours(tmp_path: Path) -> None:
    write_ours(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset  # noqa: PLC0415

        samples = list(webdataset.WebDataset(str(tmp_path / "a/00003.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"00003{number:04d}" for number in PRESENT]
    assert samples[1]["png"] == png_of_red(2)
    assert samples[1]["txt"].decode() == "caption 2 ü"
    assert json.loads(samples[1]["json"])["url"] == "http://h/2"


def test_img2datasets_own_shards_are_read_in_the_tars_order(tmp_path: Path) -> None:
    write_img2dataset_shard(tmp_path / "theirs")
    order = [7, 8, 10, 11, 1, 2, 4, 5]
    rows_in_table = [1, 2, 4, 5, 7, 8, 10, 11]
    with ImageShard(tmp_path / "theirs/00002.tar", tmp_path / "theirs/00002.parquet", "laion", 500) as shard:
        assert len(shard) == len(order)
        for row, number in enumerate(order):
            assert shard.image(row) == png_of_red(number)
            assert shard.captions[row] == f"caption {number}"
        assert shard.keys == [sample_key("laion", 500 + row) for row in rows_in_table]
    with pytest.raises(AssertionError, match="name the corpus"):
        ImageShard(tmp_path / "theirs/00002.tar", tmp_path / "theirs/00002.parquet")


def test_a_tar_of_images_alone_is_enough(tmp_path: Path) -> None:
    names = {"a": "jpg", "b": "jpeg", "c": "webp", "d": "png"}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, suffix in names.items():
            info = tarfile.TarInfo(f"./{key}.{suffix}")
            info.size = 1
            tar.addfile(info, io.BytesIO(key.encode()))
    pq.write_table(pa.table({"key": ["d", "c", "b", "a"], "status": ["success"] * 4}), tmp_path / "0.parquet")
    with ImageShard(tmp_path / "0.tar", tmp_path / "0.parquet", "c") as shard:
        assert [shard.image(row) for row in range(4)] == [b"a", b"b", b"c", b"d"]
        assert shard.captions == [""] * 4


def test_a_tar_cut_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_ours(tmp_path / "a")
    whole = (tmp_path / "a/00003.tar").read_bytes()
    with tarfile.open(tmp_path / "a/00003.tar") as tar:
        end = max(member.offset_data for member in tar.getmembers() if member.name.endswith("png"))
    cuts = [0, 100, 512, 700, 1536, 5000, 5120, len(whole) // 2, end - 512, end]
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut\.tar.*fetch it again"):
            ImageShard(tmp_path / "cut.tar", tmp_path / "a/00003.parquet")


def test_a_shard_whose_block_raises_has_no_table(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="success with no image"),
        ImageShardWriter(tmp_path, "00000", "png") as writer,
    ):
        writer.write(ShardRow("u", "", sample_key("c", 0), SUCCESS), None)
    assert not (tmp_path / "00000.parquet").exists()
