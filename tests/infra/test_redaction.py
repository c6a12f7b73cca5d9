"""Queries and user parts of URLs, in texts and in values; nothing else is touched."""

import io
import traceback
from typing import cast

import pytest

from dualtoken.infra.redaction import RedactedStream, redacted, redacted_values


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://host/t.csv?X-Amz-Signature=S3CRET&f=.csv", "http://host/t.csv"),
        ("HTTP://host/t.csv?S3CRET", "HTTP://host/t.csv"),
        (
            "table='http://user:S3C@RET@host:80/t.csv' is not there",
            "table='http://host:80/t.csv' is not there",
        ),
        (
            "403, message='Forbidden', url='https://h/t?sig=S3CRET'",
            "403, message='Forbidden', url='https://h/t'",
        ),
        ("Max retries exceeded with url: /t.csv?sig=S3CRET (x)", "Max retries exceeded with url: /t.csv (x)"),
        ("simplecache::https://u:S3CRET@h/x?sig=S3CRET", "simplecache::https://h/x"),
        ("zip://a.csv::https://S3CRET@h/x.zip?S3CRET", "zip://a.csv::https://h/x.zip"),
        ("az://container/x?sv=1&sig=S3CRET#part", "az://container/x"),
        ("http://[fe80::ab:cd]:80/x?S3CRET", "http://[fe80::ab:cd]:80/x"),
        ("table='https://h/t?name=O'Neil&sig=S3CRET' is refused", "table='https://h/t' is refused"),
        ("https://h/t?names='a','b'&sig=S3CRET", "https://h/t"),
        ('https://h/t?a="b"<c>&sig=S3CRET (403)', "https://h/t (403)"),
        ("https://user:S3C'RET@h/t", "https://h/t"),
        ("https://h/it's?S3CRET", "https://h/it's"),
        ("/it's.csv?name=O'Neil&sig=S3CRET (x)", "/it's.csv (x)"),
        ("['https://h/a?S3CRET', 'https://h/b?x=S3CRET']", "['https://h/a', 'https://h/b']"),
        ('{"url":"https://h/a?x=S3CRET","rows":2}', '{"url":"https://h/a","rows":2}'),
    ],
)
def test_a_url_loses_its_query_and_its_user_part(text: str, left: str) -> None:
    assert redacted(text) == left


def test_urls_among_values_are_redacted_and_other_texts_stay() -> None:
    values = {
        "table": "https://u:S3CRET@h/x.csv?sig=S3CRET",
        "steps": 1,
        "names": ["/odd?name=1", "s3://b/x"],
    }
    assert redacted_values(values) == {
        "table": "https://h/x.csv",
        "steps": 1,
        "names": ["/odd?name=1", "s3://b/x"],
    }


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket/part-?.parquet", "s3://bucket/run#2", "/data/odd?name=1", "https?://x", "why? a@b=c"),
        *("s3://bucket/part-?/date=1/x", "10.0.0.5:6379", "http://host/a/b@c"),
    ],
)
def test_globs_paths_and_addresses_without_secrets_stay(text: str) -> None:
    assert redacted_values([text]) == [text]


def test_a_traceback_on_a_redacted_stream_shows_no_secret() -> None:
    written = io.StringIO()
    stream = RedactedStream(written)
    error = OSError("https://u:S3CRET@host/t.csv?sig=S3CRET")
    traceback.print_exception(error, file=cast("io.StringIO", stream))
    stream.flush()
    assert "OSError: https://host/t.csv\n" in written.getvalue()
