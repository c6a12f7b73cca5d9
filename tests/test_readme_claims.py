"""Every test that the pipelines' README names as showing something is there."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = (HERE.parent / "pipelines/README.md").read_text(encoding="utf-8")
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py"))
NAMED = re.findall(r"`(test_\w+)(\.py|…)?`", README)


@pytest.mark.parametrize(("name", "ending"), NAMED)
def test_a_named_test_is_there(name: str, ending: str) -> None:
    if ending == ".py":
        assert list(HERE.rglob(f"{name}.py"))
    else:
        assert re.search(rf"^def {name}{'' if ending else '[(]'}", TESTS, re.MULTILINE)
