"""Tables of JSON lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.broken_text import check_text
from dualtoken.pipelines.images.url_table import UrlTable


def read(path: Path, *lines: object, **settings: Any) -> list[dict[str, Any]]:
    """Write a line each, as it is or as JSON, and read the table back."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    table = UrlTable([str(path)], **settings)
    return table.rows(0, table.num_rows).to_pylist()


def test_rows_come_with_their_kept_values(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "t.jsonl",
        {"url": "http://h/0", "caption": "a\nb", "score": 1, "tags": ["x"], "html": "z" * 3_000_000},
        "",
        {"url": None, "score": 2.5, "tags": {"n": None}},
        keep_columns=["score", "tags"],
    )
    assert rows == [
        {"url": "http://h/0", "caption": "a\nb", "score": 1.0, "tags": '["x"]'},
        {"url": None, "caption": "", "score": 2.5, "tags": '{"n": null}'},
    ]


def test_compressed_lines_and_a_mark_of_byte_order_are_read(tmp_path: Path) -> None:
    line = b'\xef\xbb\xbf{"url": "http://h/0", "caption": "a"}\r\n'
    (tmp_path / "t.ndjson.gz").write_bytes(gzip.compress(line))
    assert UrlTable([str(tmp_path / "t.ndjson.gz")]).rows(0, 1).to_pylist() == [
        {"url": "http://h/0", "caption": "a"}
    ]


SOUND = {"url": "http://h/0", "caption": "a", "score": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"url": "a", "caption"', r"row 2, is no JSON \("),
        ('["a"]', "row 2, is no JSON object"),
        ('{"url": "a", "caption": 3}', "row 2, has a 'caption' that is a number: give text there"),
        ('{"url": ["a"], "caption": ""}', "row 2, has a 'url' that is a list: give text there"),
        ('{"url": "a", "caption": "b", "caption": "c"}', "row 2, has 'caption' twice"),
        ('{"url": "a", "score": "high"}', "values of several types in 'score'"),
        ('{"url": "a", "score": 99999999999999999999999}', "values of several types in 'score'"),
        ("[" * 100_000, r"row 2, is no JSON \("),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"t\.jsonl',? .*{expected}") as error:
        read(tmp_path / "t.jsonl", SOUND, line, keep_columns=["score"])
    assert "\n" not in str(error.value)


def test_a_column_that_no_line_has_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    named = r"url_column='link' is no column of .*, which has url, caption, score"
    with pytest.raises(UserError, match=named):
        read(tmp_path / "t.jsonl", SOUND, url_column="link")


def test_half_of_a_surrogate_pair_is_that_rows_fault(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{json.dumps(SOUND)}\n{{"url": "http://h/1", "caption": "\\ud83d"}}\n')
    table = UrlTable([str(tmp_path / "t.jsonl")])
    assert check_text(table.rows(0, 2)).broken == {1: "caption"}
