"""The whole chain on S3 gives the bytes of the whole chain on disk."""

from pathlib import Path

from pipelines.config import Recipe
from pipelines.plan import Planner
from pipelines.recipe import load_recipe
from pipelines.run import run_command
from pipelines.run_local import LocalExecutor
from pipelines.steps import COMMANDS
from pipelines.verify import verify
from tests.conftest import TINY
from tests.s3_servers import s3_server


def test_a_run_on_s3_gives_the_bytes_of_one_on_disk(tmp_path: Path, finished: Recipe) -> None:
    said: list[str] = []
    with s3_server("rclone", tmp_path) as bucket:
        recipe = load_recipe(TINY, [f"root={bucket}/run"])
        for command in COMMANDS:
            run_command(command, recipe, LocalExecutor(), said.append)
        ours = {one.label: one.manifest.root_hash for one in Planner(recipe).plan() if one.manifest}
        assert [finding for checked in verify(recipe.root) for finding in checked.findings] == []
    theirs = {one.label: one.manifest.root_hash for one in Planner(finished).plan() if one.manifest}
    del ours["report"], theirs["report"]  # they name times and folders
    assert ours == theirs
    assert any("ignores If-None-Match" in line for line in said)
