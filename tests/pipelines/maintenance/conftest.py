"""What tests of maintenance share."""

import shutil
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.tiny_run import LoadTiny, tokens_job


@pytest.fixture
def tokens(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> Path:
    """The token dataset of a copy of the finished run, which a test may change."""
    shutil.copytree(finished.root, tmp_path / "copy")
    return Path(tokens_job(load_tiny(tmp_path / "copy")).folder)
