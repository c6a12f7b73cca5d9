"""The tiny recipe, which runs the whole chain in seconds, and the jobs of its stages."""

from collections.abc import Callable
from pathlib import Path

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.plan import Planned, Planner

PROJECT = Path(__file__).resolve().parents[2]
"""The repository's root, where commands are started."""
TINY = str(PROJECT / "tests/tiny.yaml")
"""The tiny recipe's file."""
LoadTiny = Callable[..., Recipe]
"""Loads the tiny recipe for a root: `load_tiny(root, *overrides)`."""


def planned(recipe: Recipe, step: str, corpus: str | None = None) -> Planned:
    """Plan one step for what is on disk now."""
    return Planner(recipe).one(step, corpus)


def planned_job(recipe: Recipe, step: str, corpus: str | None = None) -> StageJob:
    """Return the job of a step that waits for no other step."""
    job = planned(recipe, step, corpus).job
    assert job is not None, f"{step} waits for another step"
    return job


def tokens_job(recipe: Recipe, corpus: str = "tiny-train") -> StageJob:
    """Return the job that writes the token shards of a corpus."""
    return planned_job(recipe, "pretokenize", corpus)


def root_hashes(recipe: Recipe, *steps: str) -> dict[str, str]:
    """Return the root hashes of finished stages by label: those of some steps, or of all but the report.

    The report is another one in each run: it names times and folders.
    """
    hashes: dict[str, str] = {}
    for stage in Planner(recipe).plan():
        wanted = stage.step in steps or (not steps and stage.step != "report")
        if wanted and stage.manifest:
            hashes[stage.label] = stage.manifest.root_hash
    return hashes
