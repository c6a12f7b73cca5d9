"""The files of a URL table: folders, globs, stores and web addresses."""

import os
import socket
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.table_files import content_of, find_table_files
from dualtoken.pipelines.images.url_table import UrlTable
from tests.helpers.scripted_server import reply, serving


def write_part(path: Path, *urls: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"url": list(urls), "caption": [""] * len(urls)}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three parts, with all that other programs leave beside parts."""
    parts = tmp_path / "parts"
    for number in (10, 2, 1):
        write_part(parts / f"part-{number}.parquet", f"u{number}", f"v{number}")
    for name in ("_SUCCESS", "_metadata.parquet", ".part-1.parquet.crc", ".hidden.parquet", "README.md"):
        (parts / name).write_bytes(b"not a table")
    write_part(parts / "old/part-0.parquet", "no")
    return parts


def urls(*tables: str) -> list[str]:
    table = UrlTable(tables)
    return table.rows(0, table.num_rows)["url"].to_pylist()


IN_ORDER = ["u1", "v1", "u2", "v2", "u10", "v10"]


def test_a_folder_and_a_glob_are_read_in_natural_order(folder: Path) -> None:
    assert urls(str(folder)) == IN_ORDER
    assert urls(f"{folder}/*.parquet") == IN_ORDER
    assert urls(f"{folder}/part-[12].parquet") == ["u1", "v1", "u2", "v2"]
    assert urls(f"{folder}/**/part-?.parquet") == ["no", "u1", "v1", "u2", "v2"]
    assert UrlTable([str(folder)]).rows(1, 4)["url"].to_pylist() == ["v1", "u2", "v2", "u10"]


def test_a_folder_may_have_a_tables_name_and_parts_may_be_links(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "all.parquet"
    links.mkdir()
    (links / "0.parquet").symlink_to(folder / "part-2.parquet")
    (links / "1.parquet").symlink_to(tmp_path / "gone.parquet")
    assert urls(str(links)) == ["u2", "v2"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write_part(tmp_path / "a[1].parquet", "here")
    write_part(tmp_path / "a1.parquet", "other")
    assert urls(f"{tmp_path}/a[1].parquet") == ["here"]


def test_parts_of_text_are_read_too(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.tsv").write_text(f"url\tcaption\nu{number}\tc\n")
    assert urls(f"{tmp_path}/*.tsv") == ["u1", "u2"]


def test_parts_of_a_remote_store_are_read(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/test_table_files/parts", recursive=True)
    assert urls("memory://test_table_files/parts") == IN_ORDER
    assert urls("memory://test_table_files/parts/part-1*.parquet") == ["u1", "v1", "u10", "v10"]
    with pytest.raises(UserError, match=r"table='memory://test_table_files/none\.parquet' is not there"):
        urls("memory://test_table_files/none.parquet")


def test_content_is_that_of_all_parts_in_order(folder: Path, tmp_path: Path) -> None:
    def content(table: Path | str) -> object:
        return content_of(find_table_files(str(table), "table"))

    before = content(folder)
    assert content(f"{folder}/part-*.parquet") == before
    assert content(f"{folder}/part-1.parquet") != before
    folder.rename(tmp_path / "moved")
    assert content(tmp_path / "moved") == before
    write_part(tmp_path / "moved/part-10.parquet", "u10", "changed")
    assert content(tmp_path / "moved") != before


def one_line(table: Path | str) -> str:
    with pytest.raises(UserError) as error:
        urls(str(table))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.csv").touch()
    (tmp_path / "mixed/b.tsv").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.csv")
        assert "s.csv' is a socket: set it to a .parquet, .csv" in one_line("s.csv")
    assert "fifo.csv' is a FIFO: set it to" in one_line(tmp_path / "fifo.csv")
    assert "gone, which is not there: set it to" in one_line(tmp_path / "dangling.csv")
    assert "none.parquet' is not there: set it to" in one_line(tmp_path / "none.parquet")
    assert "empty' is a folder without such a file: set it to" in one_line(tmp_path / "empty")
    assert "*.parquet' matches no such file: set it to" in one_line(f"{tmp_path}/*.parquet")
    assert "mixed' has parts of csv and tsv: set it to a glob" in one_line(tmp_path / "mixed")
    assert "notes.txt' is none of .parquet, .csv, .tsv" in one_line(tmp_path / "notes.txt")
    assert "/dev/null' is none of .parquet" in one_line("/dev/null")
    assert "odd://x/a.csv': Protocol not known: odd" in one_line("odd://x/a.csv")


def test_a_part_that_is_not_like_the_others_is_named(folder: Path) -> None:
    (folder / "part-2.parquet").write_bytes(b"")
    assert f"table='{folder}/part-2.parquet' is empty, 0 bytes" in one_line(folder)
    pq.write_table(pa.table({"url": ["a"], "text": ["b"]}), folder / "part-2.parquet")
    assert f"caption_column='caption' is no column of {folder}/part-2.parquet" in one_line(folder)


def test_kept_columns_have_one_type_in_all_parts(tmp_path: Path) -> None:
    for number, values in enumerate([pa.nulls(1), pa.array([1], pa.int32()), pa.array([2], pa.int64())]):
        table = pa.table({"url": ["u"], "caption": ["c"], "score": values})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    table = UrlTable([str(tmp_path)], keep_columns=["score"])
    assert {table.rows(row, 1).schema.field("score").type for row in range(3)} == {pa.int64()}
    assert table.rows(0, 3)["score"].to_pylist() == [None, 1, 2]
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "score": ["high"]}), tmp_path / "3.parquet")
    named = r"keep_columns has 'score', which is of type int64 in .*2\.parquet and of type string in .*3\.par"
    with pytest.raises(UserError, match=named):
        UrlTable([str(tmp_path)], keep_columns=["score"]).rows(0, 1)


def test_a_signed_table_is_asked_for_byte_for_byte_by_get_alone(tmp_path: Path) -> None:
    write_part(tmp_path / "t.parquet", "u", "v")
    query = "t.parquet?X-Sig=a%2Fb%2B+c/d&e=%7E'"
    with serving(reply((tmp_path / "t.parquet").read_bytes())) as server:
        table = UrlTable([f"{server.base}/{query}"])
        assert table.rows(0, table.num_rows)["url"].to_pylist() == ["u", "v"]
        local = content_of(find_table_files(str(tmp_path / "t.parquet"), "table"))
        assert content_of(table.files) == local
    assert [head.split("\r\n")[0] for head in server.requests] == [f"GET /{query} HTTP/1.1"]


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "410 Gone"])
def test_a_table_that_a_server_refuses_is_one_line_without_its_signature(status: str) -> None:
    with serving(reply(status=status)) as server:
        message = one_line(f"{server.base}/t.csv?Signature=S1GNED")
        assert message.startswith(f"table='{server.base}/t.csv' is ")
    assert "S1GNED" not in message


def test_a_server_that_is_busy_is_no_mistake_of_the_users() -> None:
    with serving(reply(status="503 Busy")) as server, pytest.raises(ConnectionError) as error:
        urls(f"{server.base}/t.csv?Signature=S1GNED")
    assert "S1GNED" not in str(error.value)
