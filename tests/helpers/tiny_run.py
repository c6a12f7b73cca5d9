"""The tiny recipe, which runs the whole chain in seconds, and the jobs of its stages."""

from collections.abc import Callable
from pathlib import Path

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner

PROJECT = Path(__file__).resolve().parents[2]
"""The repository's root, where commands are started."""
TINY = str(PROJECT / "tests/tiny.yaml")
"""The tiny recipe's file."""
LoadTiny = Callable[..., Recipe]
"""Loads the tiny recipe for a root: `load_tiny(root, *overrides)`."""


def planned(recipe: Recipe, stage: str, corpus: str | None = None) -> PlannedStage:
    """Plan one stage for what is on disk now."""
    return Planner(recipe).get(stage, corpus)


def planned_job(recipe: Recipe, stage: str, corpus: str | None = None) -> StageJob:
    """Return the job of a stage that waits for no other stage."""
    job = planned(recipe, stage, corpus).job
    assert job is not None, f"{stage} waits for another stage"
    return job


def tokens_job(recipe: Recipe, corpus: str = "tiny-train") -> StageJob:
    """Return the job that writes the token shards of a corpus."""
    return planned_job(recipe, "pretokenize", corpus)


def root_hashes(recipe: Recipe, *stages: str) -> dict[str, str]:
    """Return the root hashes of finished stages by label: those of some stages, or of all but the report.

    The report is another one in each run: it names times and folders.
    """
    hashes: dict[str, str] = {}
    for one_stage in Planner(recipe).plan():
        wanted = one_stage.stage in stages or (not stages and one_stage.stage != "report")
        if wanted and one_stage.manifest:
            hashes[one_stage.label] = one_stage.manifest.root_hash
    return hashes
