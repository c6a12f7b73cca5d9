"""The import root: every public name is there, and none costs anything before its first use."""

import subprocess
import sys
from pathlib import Path

import pytest

import dualtoken

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", dir(dualtoken))
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(dualtoken, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        dualtoken.no_such_name  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_import_root_brings_only_what_reads_its_stub() -> None:
    code = "import sys, dualtoken; print(sorted(m for m in sys.modules if m.startswith('dualtoken')))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert found.stdout.strip() == "['dualtoken']"
