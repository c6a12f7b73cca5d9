"""Output that a terminal or log cannot show is escaped, and ends no command."""

import pytest

from tests.helpers.command_line import run_dualtoken

STRICT = (
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.mark.parametrize("environment", STRICT, ids=["ascii", "C"])
def test_a_mistake_is_told_where_output_takes_ascii_only(environment: dict[str, str]) -> None:
    ended = run_dualtoken("plan", "n\xf6.yaml", environment=environment)
    assert ended.returncode == 2
    assert "recipe 'n\\" in ended.stderr
    assert "is no file" in ended.stderr
    assert "Traceback" not in ended.stderr
