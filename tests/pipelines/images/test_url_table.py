"""Tables of URLs, by ranges of rows."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.sources import count_source_rows, source_identity
from dualtoken.pipelines.images.url_table import UrlTable, url_table
from tests.helpers.image_shards import png_of_red, write_img2dataset_shard


def url(number: int) -> str | None:
    if number % 7 == 3:
        return None
    return f"http://h/{number}"


def caption(number: int) -> str | None:
    if number % 5 == 1:
        return None
    return f"caption {number}"


def table(first: int, rows: int) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {
            "link": [url(number) for number in numbers],
            "text": [caption(number) for number in numbers],
            "license": pa.array(list(numbers), pa.int32()),
            "blob": [b"x" * 1000] * rows,
        }
    )


def with_urls(path: Path, **settings: object) -> Recipe:
    recipe = load_recipe("scenes").model_dump(mode="json")
    recipe["corpora"]["scenes-train"] = {"source": {"kind": "urls", "table": str(path), **settings}}
    recipe["download"]["rows_per_shard"] = 40
    return Recipe.model_validate(recipe)


def test_ranges_cross_row_groups_and_files(tmp_path: Path) -> None:
    pq.write_table(table(0, 95), tmp_path / "a.parquet", row_group_size=10)
    pq.write_table(table(95, 30), tmp_path / "b.parquet", row_group_size=100)
    urls = UrlTable([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], "link", "text", ["license"])
    assert urls.num_rows == 125
    for first, count in [(0, 125), (7, 20), (90, 12), (124, 1), (30, 0)]:
        rows = urls.rows(first, count)
        numbers = range(first, first + count)
        assert rows["url"].to_pylist() == [url(number) for number in numbers]
        assert rows["caption"].to_pylist() == [caption(number) or "" for number in numbers]
        if count:
            assert rows["license"].to_pylist() == list(numbers)


def test_only_the_wanted_row_groups_and_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(table(0, 100), tmp_path / "a.parquet", row_group_size=10)
    whole = (tmp_path / "a.parquet").read_bytes()
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    ruined = bytearray(whole)
    # Ruin the URLs of the last row group and the blobs of the first: reading the first's URLs may not notice.
    for column in (metadata.row_group(9).column(0), metadata.row_group(0).column(3)):
        start = column.dictionary_page_offset or column.data_page_offset
        ruined[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(ruined)
    urls = UrlTable([str(tmp_path / "a.parquet")], "link", "text")
    assert urls.rows(0, 20).num_rows == 20


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_text_tables_are_read_as_strings(tmp_path: Path, suffix: str, mark: str) -> None:
    with (tmp_path / f"t.{suffix}").open("w") as file:
        for line in (["url", "caption", "license"], ["http://h/1", '"two\nlines"', "007"], ["", "", "1"]):
            file.write(mark.join(line) + "\n")
    urls = UrlTable([str(tmp_path / f"t.{suffix}")], keep_columns=["license"], quotes="csv")
    assert urls.num_rows == 2
    assert urls.rows(0, 2).to_pylist() == [
        {"url": "http://h/1", "caption": "two\nlines", "license": "007"},
        {"url": "", "caption": "", "license": "1"},
    ]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_missing_column_is_named_with_what_is_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(table(0, 3), path)
    else:
        path.write_text("link,text,license\na,b,c\n")
    with pytest.raises(
        UserError, match=r"url_column='url' is no column of .*, which has link, text, license.*: set it"
    ) as error:
        UrlTable([str(path)]).num_rows  # noqa: B018
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="keep_columns='licence'"):
        UrlTable([str(path)], "link", "text", ["licence"]).num_rows  # noqa: B018


def test_unreadable_tables_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "t.csv").write_text("url,caption\na,b,c,d\n")
    for name in ("t.parquet", "t.csv", "none.parquet", "t.json"):
        with pytest.raises(UserError, match=name) as error:
            UrlTable([str(tmp_path / name)]).num_rows  # noqa: B018
        assert "\n" not in str(error.value)
    pq.write_table(table(0, 3), tmp_path / "u.parquet")
    with pytest.raises(UserError, match="type int32: set it to a column of text"):
        UrlTable([str(tmp_path / "u.parquet")], "license", "text").rows(0, 1)
    with pytest.raises(UserError, match="'status', which the shards use"):
        UrlTable([str(tmp_path / "u.parquet")], "link", "text", ["status"])


def test_units_add_up_to_the_source(tmp_path: Path) -> None:
    pq.write_table(table(0, 95), tmp_path / "a.parquet")
    recipe = with_urls(
        tmp_path / "a.parquet", url_column="link", caption_column="text", keep_columns=["license"]
    )
    assert count_source_rows(recipe, "scenes-train") == [40, 40, 15]
    assert count_source_rows(recipe, "scenes-heldout") == [40] * 25 + [24]
    assert url_table(recipe, "scenes-train", None).rows(94, 1)["license"].to_pylist() == [94]
    assert url_table(recipe, "scenes-train", None).rows(94, 1).column_names == ["url", "caption", "license"]


def test_identity_follows_the_content_and_not_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 5), path)
    recipe = with_urls(path, url_column="link", caption_column="text")
    before = source_identity(recipe, "scenes-train")
    pq.write_table(table(0, 5), path)
    assert source_identity(recipe, "scenes-train") == before
    pq.write_table(table(1, 5), path)
    assert source_identity(recipe, "scenes-train") != before
    path.unlink()
    with pytest.raises(UserError, match="is not there"):
        source_identity(recipe, "scenes-train")


def test_shards_of_the_same_names_sizes_and_times_with_other_pictures_are_another_source(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "theirs"
    write_img2dataset_shard(folder)
    values = load_recipe("scenes").model_dump(mode="json")
    values["corpora"]["scenes-train"] = {"source": {"kind": "shards", "folder": str(folder)}}
    recipe = Recipe.model_validate(values)
    before = source_identity(recipe, "scenes-train")
    tar = folder / "00002.tar"
    status = tar.stat()
    picture = png_of_red(1)
    assert tar.read_bytes().count(picture) == 1
    other = picture[:-13] + bytes([picture[-13] ^ 1]) + picture[-12:]
    tar.write_bytes(tar.read_bytes().replace(picture, other))
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_identity(recipe, "scenes-train") != before
    tar.write_bytes(tar.read_bytes().replace(other, picture))
    assert source_identity(recipe, "scenes-train") == before
