"""Other code under the same fingerprint: a stage is run, its module is edited, and it is run again."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import run_dualtoken
from tests.helpers.tiny_run import TINY

MODULE = """
from pathlib import Path

from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.runtime.stage import Stage
from dualtoken.pipelines.runtime.stages import declare

WORD = 'a word'


class Worker:
    def __init__(self, job: StageJob) -> None:
        pass

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        if (unit.id, WORD) == ("second", "fail"):
            raise TimeoutError("not now")
        (scratch / unit.id).write_text(WORD)
        return UnitOutput((unit.id,), None)


declare(
    Stage(
        name="words",
        version=1,
        folder="words",
        worker="word_stage:Worker",
        reads=lambda _recipe, _corpus: [],
        settings=lambda _recipe, _corpus: {},
        units=lambda _recipe, _corpus, _manifests: [Unit("first", 0), Unit("second", 0)],
        per_corpus=False,
        help="Write a word.",
    )
)
"""
Dualtoken = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dualtoken(tmp_path: Path) -> Dualtoken:
    """Runs a command on the tiny recipe that knows the stage in `word_stage.py`."""
    environment = {
        "DUALTOKEN_STAGES": "word_stage",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }

    def run(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        root = tmp_path / "root"
        return run_dualtoken(command, TINY, "--root", root, *arguments, environment=environment)

    return run


def write(folder: Path, word: str) -> None:
    (folder / "word_stage.py").write_text(MODULE.replace("a word", word))


def test_units_of_two_codes_in_one_folder_are_named_or_refused_as_the_recipe_chooses(
    tmp_path: Path, dualtoken: Dualtoken
) -> None:
    write(tmp_path, "fail")
    assert dualtoken("words", "--in-process").returncode == 75
    (folder,) = (tmp_path / "root/words").iterdir()
    first = json.loads((folder / "stage.json").read_text())

    write(tmp_path, "word")
    refused = dualtoken("words", "--in-process", "--set", "code.changed=refuse")
    assert refused.returncode == 2
    assert f"words: {folder} was begun by other code ({first['code']}; this is " in refused.stderr
    assert "code.changed=refuse: check out that code" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    gone_on = dualtoken("words", "--in-process")
    assert gone_on.returncode == 0
    assert "was begun by other code" in gone_on.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    receipts = [json.loads((folder / f"receipts/{unit}.json").read_text()) for unit in ("first", "second")]
    assert sorted(receipt["code"] for receipt in receipts) == manifest["codes"]
    assert len(manifest["codes"]) == 2
    assert receipts[0]["code"] == first["code"]
    codes = ", ".join(manifest["codes"])
    assert f"words: {folder} was made by other code ({codes}; this is " in dualtoken("explain").stdout


def test_a_finished_folder_of_other_code_is_named_once_and_not_done_again(
    tmp_path: Path, dualtoken: Dualtoken
) -> None:
    write(tmp_path, "word")
    made = dualtoken("words", "--in-process")
    assert made.returncode == 0
    assert "other code" not in made.stdout

    write(tmp_path, "other")
    again = dualtoken("words", "--in-process")
    assert again.returncode == 0
    assert again.stdout.count("was made by other code") == 1
    (folder,) = (tmp_path / "root/words").iterdir()
    assert (folder / "first").read_text() == "word"
    assert "was made by other code" in dualtoken("status").stdout
    assert "other code" not in dualtoken("words", "--in-process", "--set", "code.changed=ignore").stdout
