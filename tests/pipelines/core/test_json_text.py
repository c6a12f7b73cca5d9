"""JSON of any values of a table."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from dualtoken.pipelines.core.json_text import json_text


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def test_values_that_json_has_no_type_for_are_null_or_text() -> None:
    values = {
        "nan": float("nan"),
        "nested": [{"infinite": (float("inf"), 1.5)}],
        "bytes": b"\x00\xff",
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "price": Decimal("1.10"),
        "pairs": [("a", float("-inf"))],
        "none": None,
    }
    assert json.loads(json_text(values), parse_constant=refuse) == {
        "nan": None,
        "nested": [{"infinite": [None, 1.5]}],
        "bytes": "00ff",
        "when": "2026-01-02 00:00:00+00:00",
        "price": "1.10",
        "pairs": [["a", None]],
        "none": None,
    }


def test_the_check_of_this_test_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN is no JSON"):
        json.loads(json.dumps(float("nan")), parse_constant=refuse)
