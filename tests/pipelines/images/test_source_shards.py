"""Existing datasets: what is incomplete or damaged is named at the plan; tars alone are enough."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ShardsSource
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shard_tables import read_metadata
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.images.source_shards import find_shards, open_source_shard
from tests.helpers.image_shards import png_of_red

KEYS = [f"{number:05d}" for number in range(4)]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def write_shard(folder: Path, name: str = "00000", /, **columns: Any) -> None:
    write_tar(folder / f"{name}.tar", {f"{key}.png": png_of_red(int(key)) for key in KEYS})
    table = {"key": KEYS, "status": ["success"] * 4, "caption": list("abcd")} | columns
    pq.write_table(pa.table(table), folder / f"{name}.parquet")


def test_a_folder_is_listed_in_order_and_must_be_whole(tmp_path: Path) -> None:
    write_shard(tmp_path, "00010")
    write_shard(tmp_path, "00002")
    assert find_shards(str(tmp_path)) == [("00002", 0, 4, True), ("00010", 4, 4, True)]
    (tmp_path / "00010.tar").unlink()
    with pytest.raises(UserError, match=r"has 00010\.parquet but no 00010\.tar"):
        find_shards(str(tmp_path))
    with pytest.raises(UserError, match=r"has no \.tar: set it"):
        find_shards(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("caption", list(range(4)), "has a column 'caption' of type int64"),
        ("caption", [["a"]] * 4, "has a column 'caption' of type list<"),
        ("url", [0.5] * 4, "has a column 'url' of type double"),
        ("status", [1] * 4, "has a column 'status' of type int64"),
    ],
)
def test_a_column_of_another_kind_is_named_before_anything_is_read(
    name: str, column: list[Any], message: str, tmp_path: Path
) -> None:
    write_shard(tmp_path, **{name: column})
    with pytest.raises(UserError, match=rf"00000\.parquet {message}"):
        find_shards(str(tmp_path))


def test_what_a_run_that_was_killed_left_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path)
    write_tar(tmp_path / "00001.tar", {"a.png": b""})
    with pytest.raises(UserError, match=r"has 00001\.tar but no 00001\.parquet"):
        find_shards(str(tmp_path))
    (tmp_path / "00001.parquet").touch()
    with pytest.raises(UserError, match=r"00001\.parquet is empty, 0 bytes"):
        find_shards(str(tmp_path))
    write_shard(tmp_path, "00001")
    (tmp_path / "00001.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"00001\.tar is empty, 0 bytes"):
        find_shards(str(tmp_path))


def test_two_columns_of_one_name_and_damage_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path)
    sound = (tmp_path / "00000.parquet").read_bytes()
    columns = [pa.array(KEYS), pa.array(["success"] * 4), pa.array(list("abcd")), pa.array(list("abcd"))]
    twice = pa.Table.from_arrays(columns, names=["key", "status", "caption", "caption"])
    pq.write_table(twice, tmp_path / "00000.parquet")
    with pytest.raises(UserError, match=r"00000\.parquet has two columns 'caption'"):
        find_shards(str(tmp_path))
    (tmp_path / "00000.parquet").write_bytes(sound[:-30])
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read"):
        find_shards(str(tmp_path))
    (tmp_path / "00000.parquet").write_bytes(sound[:20] + bytes(60) + sound[80:])
    with pytest.raises(UserError, match=r"00000\.parquet.*cannot be read"):
        read_metadata(tmp_path / "00000.parquet")


def test_whole_numbers_as_keys_are_found_with_their_zeros(tmp_path: Path) -> None:
    write_shard(tmp_path, key=list(range(4)))
    with ImageShard(tmp_path / "00000.tar", tmp_path / "00000.parquet", "c") as shard:
        assert shard.table["key"].to_pylist() == KEYS
        assert [shard.image(row) for row in range(4)] == [png_of_red(number) for number in range(4)]


@pytest.mark.parametrize("unknown", [None, 0, float("nan")])
def test_an_unknown_size_is_none(unknown: float | None, tmp_path: Path) -> None:
    write_shard(tmp_path, width=[8.0, unknown, 8, 8], height=[9.0, 9, 9, unknown])
    with ImageShard(tmp_path / "00000.tar", tmp_path / "00000.parquet", "c") as shard:
        assert shard.original_sizes == [(8, 9), None, (8, 9), None]


def test_a_key_twice_in_a_table_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path, key=["00000", "00000", "00001", "00002"])
    with pytest.raises(UserError, match=r"00000\.tar has the key 00000 twice"):
        ImageShard(tmp_path / "00000.tar", tmp_path / "00000.parquet", "c")


def test_tars_without_tables_are_read_with_keys_and_captions_of_their_members(tmp_path: Path) -> None:
    members = {
        "a.input.png": png_of_red(1),
        "a.txt": "ein Garten \xfc\n".encode(),
        "b.png": png_of_red(2),
        "b.json": b'{"caption": "a tree", "score": NaN, "url": "http://h/b"}',
        "c.cls": b"7",
        "d/e.png": png_of_red(3),
    }
    write_tar(tmp_path / "train-000.tar", {"x.png": png_of_red(9)})
    write_tar(tmp_path / "train-001.tar", members)
    shards = find_shards(str(tmp_path))
    assert shards == [("train-000", 0, 1, False), ("train-001", 1, 4, False)]
    images, names = open_source_shard(Store(str(tmp_path)), shards[1], "c", tmp_path / "scratch")
    with images:
        assert names == ["train-001.tar"]
        assert images.captions == ["ein Garten \xfc", "a tree", ""]
        assert [images.image(row) for row in range(3)] == [png_of_red(number) for number in (1, 2, 3)]
        assert images.table["url"].to_pylist() == [None, "http://h/b", None, None]
        assert images.table["status"].to_pylist() == ["success", "success", "failed_to_download", "success"]
        assert images.table["error_message"].to_pylist()[2] == "no image among cls"


def test_a_caption_of_a_tar_that_is_no_text_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": png_of_red(1), "a.json": json.dumps({"caption": ["x"]}).encode()})
    with pytest.raises(UserError, match=r"0\.tar has a caption of type list in a\.json"):
        open_source_shard(Store(str(tmp_path)), find_shards(str(tmp_path))[0], "c", tmp_path / "scratch")


CAPTIONED = {
    "a.png": png_of_red(1),
    "a.en.TXT": b"a member",
    "a.json": b'{"Text": "a key", "caption": "the usual"}',
    "b.png": png_of_red(2),
    "b.json": b'{"Text": "another key"}',
    "c.png": png_of_red(3),
}


@pytest.mark.parametrize(
    ("caption_key", "captions"),
    [
        ("en.txt", ["a member", None, None]),
        ("json.Text", ["a key", "another key", None]),
        (["en.TXT", "JSON.Text"], ["a member", "another key", None]),
        (["json.absent", "json.caption"], ["the usual", None, None]),
        (None, ["the usual", None, None]),
    ],
)
def test_a_recipe_says_where_a_tars_captions_are(
    caption_key: Any, captions: list[str | None], tmp_path: Path
) -> None:
    write_tar(tmp_path / "0.tar", CAPTIONED)
    source = ShardsSource(kind="shards", folder=str(tmp_path), caption_key=caption_key)
    (shard,) = find_shards(source.folder, source.caption_keys)
    store = Store(source.folder)
    images, _ = open_source_shard(store, shard, "c", tmp_path / "scratch", source.caption_keys)
    with images:
        assert images.table["caption"].to_pylist() == captions


def test_a_caption_key_that_nothing_has_is_named_with_what_there_is(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", CAPTIONED)
    (shard,) = find_shards(str(tmp_path))
    with pytest.raises(
        UserError, match=r"^caption_key=cap: no sample of .*0\.tar has it; .* en\.txt, json, png$"
    ):
        open_source_shard(Store(str(tmp_path)), shard, "c", tmp_path / "scratch", ["cap"])
    write_shard(tmp_path, "0")
    with pytest.raises(
        UserError, match=r"caption_key=txt is for tars without tables, .* leave caption_key out"
    ):
        find_shards(str(tmp_path), ["txt"])


@pytest.mark.parametrize("wrong", ["json", ".txt", "json.", "a/b", "", []])
def test_what_is_no_caption_key_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="caption_key"):
        ShardsSource(kind="shards", folder="/shards", caption_key=wrong)


def test_captions_of_another_place_are_another_source_and_the_usual_one_is_as_before() -> None:
    usual = ShardsSource(kind="shards", folder="/shards")
    assert usual.identity() == {"kind": "shards", "folder": "/shards"}
    assert usual.model_copy(update={"caption_key": "en.txt"}).identity() != usual.identity()


def test_members_that_stand_apart_and_a_tar_cut_short_are_named_at_the_plan(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "b.png": b"2", "a.txt": b"3"})
    with pytest.raises(UserError, match=r"0\.tar has the members of a apart"):
        find_shards(str(tmp_path))
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "b.png": b"2"})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:1024])
    with pytest.raises(UserError, match=r"0\.tar is cut short"):
        find_shards(str(tmp_path))


def test_a_folder_by_a_protocol_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match="folder='nope://x': Protocol not known: nope; set it to a path or"):
        find_shards("nope://x")
