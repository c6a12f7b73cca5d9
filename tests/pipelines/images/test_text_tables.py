"""Tables of text: quote marks, line ends, and rows that are not like the others."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.url_table import UrlTable

LONG = "x" * 3_000_000


def read(path: Path, content: str | bytes, **settings: Any) -> list[tuple[str, str]]:
    """Write a table and read it back, as (URL, caption) of each row."""
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    table = UrlTable([str(path)], **settings)
    rows = table.rows(0, table.num_rows).to_pylist()
    return [(row["url"], row["caption"]) for row in rows]


def rows_of(captions: list[str], mark: str = ",") -> str:
    lines = [f"url{mark}caption"]
    lines += [f"http://h/{number}{mark}{caption}" for number, caption in enumerate(captions)]
    return "\n".join(lines) + "\n"


def test_quote_marks_of_a_tsv_are_letters(tmp_path: Path) -> None:
    captions = ['"unclosed', "b", 'c"', '"d"', '5" disk', '""', 'two\\nlines "x"']
    assert [caption for _, caption in read(tmp_path / "t.tsv", rows_of(captions, "\t"))] == captions


def test_a_tsv_with_quoted_fields_is_read_by_a_key(tmp_path: Path) -> None:
    content = rows_of(['"two\nlines\tand ""more"""'], "\t")
    assert read(tmp_path / "t.tsv", content, quotes="csv") == [("http://h/0", 'two\nlines\tand "more"')]


def test_a_csv_whose_quote_marks_are_letters_is_read_by_a_key(tmp_path: Path) -> None:
    captions = ['"unclosed', "b", 'c"']
    read_back = read(tmp_path / "t.csv", rows_of(captions), quotes="none")
    assert [caption for _, caption in read_back] == captions


@pytest.mark.parametrize(
    ("captions", "row"),
    [
        (["a", '"unclosed', "c", "d"], 2),
        (["a", "b", "c", '"unclosed'], 4),
        (['"unclosed', "b", '"closed"', "d"], 1),
        (['"closed" and more', "b"], 1),
        (['"a"b"', "b"], 1),
    ],
)
def test_a_quote_mark_that_is_not_closed_names_file_and_row(
    tmp_path: Path, captions: list[str], row: int
) -> None:
    named = rf"t\.csv', row {row} \(line {row + 1}\), .* quote mark .*quotes=none"
    with pytest.raises(UserError, match=named) as error:
        read(tmp_path / "t.csv", rows_of(captions))
    assert "\n" not in str(error.value)


SWALLOWING = [
    rows_of(["a", '"unclosed', "c", 'd"', "e"]),
    rows_of(["a", '"unclosed', 'c"']),
    'caption,url\na,http://h/0\n"b,http://h/1\nc",http://h/2\n',
    'url,caption,license\nhttp://h/0,a,x\nhttp://h/1,"b,x\nhttp://h/2,c",x\n',
]


@pytest.mark.parametrize("content", SWALLOWING)
def test_quote_marks_of_two_rows_do_not_swallow_what_is_between(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"t\.csv', row 2 \(line 3\), holds what looks like .*quotes=csv"):
        read(tmp_path / "t.csv", content)
    assert len(read(tmp_path / "t.csv", content, quotes="csv")) < content.count("http")


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ('"two\nlines"', "two\nlines"),
        ('"two\r\nlines, and a comma"', "two\r\nlines, and a comma"),
        ('"say ""hi"""', 'say "hi"'),
        ('5" disk', '5" disk'),
        ('a "b" c', 'a "b" c'),
        ('""', ""),
        ("", ""),
        ('"see\nhttp://x.org/ for more, please"', "see\nhttp://x.org/ for more, please"),
        ("a\0b", "a\0b"),
        ("a\u2028b\x0bc", "a\u2028b\x0bc"),
        ("日本語 🎈", "日本語 🎈"),
        (" spaced ", " spaced "),
    ],
)
def test_what_csv_allows_is_read(tmp_path: Path, written: str, caption: str) -> None:
    content = rows_of([written, "next"])
    assert read(tmp_path / "t.csv", content) == [("http://h/0", caption), ("http://h/1", "next")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_marks_of_byte_order_are_no_text(
    tmp_path: Path, end: str, last: bool, mark: str
) -> None:
    content = mark + rows_of(["a", "b"]).replace("\n", end)
    if not last:
        content = content.removesuffix(end)
    assert read(tmp_path / "t.csv", content.encode()) == [("http://h/0", "a"), ("http://h/1", "b")]


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("url,caption\na,b\na,b,c\n", r"row 2 \(line 3\), has 3 fields where the header has 2"),
        ("url,caption\n\na\n", r"row 1 \(line 3\), has 1 fields where the header has 2"),
        (b"url,caption\na,b\nc,caf\xe9\n", r"row 2, has a 'caption' that is not UTF-8"),
        ('"url,caption\na,b\n', r"the header \(line 1\), opens a quote mark"),
        (b"", "is empty, 0 bytes"),
        ("\n\n", "has no header"),
        ("url,caption\na,b\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
    ],
)
def test_what_is_no_sound_table_is_one_line(tmp_path: Path, content: str | bytes, row: str) -> None:
    with pytest.raises(UserError, match=rf"table='.*t\.csv'?,? {row}") as error:
        read(tmp_path / "t.csv", content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", [LONG, f'"{LONG}\n"'])
def test_a_field_that_nobody_asked_for_may_be_long_and_of_any_bytes(tmp_path: Path, other: str) -> None:
    content = f"url,caption,html\na,b,\nc,d,{other}\ne,f,\n".encode().replace(b"xx", b"\xff\xfe", 1)
    assert read(tmp_path / "t.csv", content) == [("a", "b"), ("c", "d"), ("e", "f")]
    assert read(tmp_path / "t.tsv", content.replace(b",", b"\t").replace(b'\n"', b'"'))[1] == ("c", "d")


@pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ", "t.tsv.gz"])
def test_compressed_tables_are_read(tmp_path: Path, name: str) -> None:
    mark = "\t" if "tsv" in name else ","
    whole = gzip.compress(rows_of(["a", "b"], mark).encode() * 1)
    assert read(tmp_path / name, whole) == [("http://h/0", "a"), ("http://h/1", "b")]
    for damaged in (whole[:-9], whole[:12], whole[:20] + b"\xff" * 10 + whole[30:]):
        with pytest.raises(UserError, match=rf"{name}' cannot be read: .*; give a sound file"):
            read(tmp_path / name, damaged)


def test_many_rows_are_read_in_order(tmp_path: Path) -> None:
    captions = [str(number) for number in range(70_000)]
    assert [caption for _, caption in read(tmp_path / "t.csv", rows_of(captions))] == captions
