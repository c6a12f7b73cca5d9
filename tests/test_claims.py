"""Every file, test and benchmark that CLAIMS.md names exists."""

import re

import pytest

from tests.helpers.tiny_run import PROJECT

CLAIMS = (PROJECT / "tests/CLAIMS.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`(tests/[^\s`]+\.py)`", CLAIMS)))
TESTS = sorted(set(re.findall(r"`(tests/[^\s`]+\.py)::(test_\w+)`", CLAIMS)))
BENCHMARKS = sorted(set(re.findall(r"`python -m benchmarks\.(\w+)`", CLAIMS)))


@pytest.mark.parametrize("file", FILES)
def test_a_named_file_exists(file: str) -> None:
    assert (PROJECT / file).is_file()


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_named_test_exists(file: str, name: str) -> None:
    source = (PROJECT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_named_benchmark_exists(name: str) -> None:
    assert (PROJECT / f"benchmarks/{name}.py").is_file()


def test_nothing_is_named_in_a_form_that_is_not_checked() -> None:
    code = re.findall(r"`([^`]+)`", CLAIMS)
    names = [word for word in code if "test_" in word or "benchmarks" in word]
    forms = r"tests/\S+\.py(::test_\w+)?|python -m benchmarks\.\w+"
    assert [name for name in names if not re.fullmatch(forms, name)] == []
    assert len(names) > 130
