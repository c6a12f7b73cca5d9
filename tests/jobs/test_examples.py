"""The examples that the jobs' README gives run as they stand there, on another root."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.tiny_run import PROJECT, TINY, tokens_job

README = (PROJECT / "jobs/README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^dualtoken (.+?)(?: +#.*)?$", README, re.MULTILINE)
PRINTED = {
    "plan": "pretokenize",
    "inspect": "perplexity",
    "card": "## Licenses",
    "export-tokens": "as webdataset",
    "verify": "rows of 10 shards encoded again",
    "explain": "train: train.steps: 4 -> 900",
    "pretokenize": "waits for train",
    "forget": "nothing is changed without --delete",
    "gc": "nothing that is older than",
}
"""A piece of what each command prints."""
Translate = Callable[[str], list[str]]
"""Returns the arguments of an example."""


@pytest.fixture
def translate(tmp_path: Path, finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> Translate:
    """Return the arguments of an example for a copy of the finished run, under its names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.root, "data")
    job = tokens_job(finished)
    names = {
        "recipes/urls.yaml": TINY,
        "data/web/": "data/tiny-train/",
        "3f2a91c04d7e": job.fingerprint,
        "of.web=": "of.tiny-train=",
    }

    def arguments(example: str) -> list[str]:
        for in_readme, here in names.items():
            example = example.replace(in_readme, here)
        return ["tiny-train" if word == "web" else word for word in shlex.split(example)]

    return arguments


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_readme_runs(example: str, translate: Translate) -> None:
    ended = CliRunner().invoke(app, translate(example))
    command = example.split(maxsplit=1)[0]
    assert PRINTED[command] in f"{ended.output}{ended.exception}"


def test_each_command_on_what_is_there_has_an_example() -> None:
    assert {example.split()[0] for example in EXAMPLES} == set(PRINTED)
