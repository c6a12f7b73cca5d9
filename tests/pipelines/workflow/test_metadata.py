"""What Dagster shows of a stage."""

from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dagster as dg

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.workflow.metadata import Metadata, stage_metadata
from tests.helpers.tiny_run import planned


def job_and_manifest(recipe: Recipe, stage: str, corpus: str | None = None) -> tuple[StageJob, Manifest]:
    """Return a finished stage's job and manifest."""
    one = planned(recipe, stage, corpus)
    assert one.job is not None
    assert one.manifest is not None
    return one.job, one.manifest


def metadata_of(recipe: Recipe, stage: str, corpus: str | None = None) -> Metadata:
    """Return the metadata of a finished stage."""
    return stage_metadata(*job_and_manifest(recipe, stage, corpus))


def test_counts_and_sizes_are_numbers(finished: Recipe) -> None:
    _, manifest = job_and_manifest(finished, "filter", "tiny-train")
    metadata = metadata_of(finished, "filter", "tiny-train")
    assert metadata["samples_in"] == dg.MetadataValue.int(40)
    assert metadata["samples_ok"] == dg.MetadataValue.int(manifest.counts["ok"])
    assert metadata["samples_rejected:similarity"] == dg.MetadataValue.int(40 - manifest.counts["ok"])
    assert metadata["dagster/row_count"] == metadata["samples_ok"]
    assert metadata["bytes"] == dg.MetadataValue.int(manifest.bytes)
    assert metadata["seconds_of_work"] == dg.MetadataValue.float(manifest.seconds)


def test_a_model_has_no_samples_to_count(finished: Recipe) -> None:
    labels = set(metadata_of(finished, "train"))
    assert not any(label.startswith(("samples_", "dagster/")) for label in labels)


def test_the_folder_is_a_path_and_the_end_a_time(finished: Recipe) -> None:
    job, manifest = job_and_manifest(finished, "train")
    metadata = metadata_of(finished, "train")
    assert metadata["folder"] == dg.MetadataValue.path(job.folder)
    finished_at = datetime.fromisoformat(manifest.last_finished_at)
    assert metadata["finished_at"] == dg.MetadataValue.timestamp(finished_at)


def test_the_report_is_a_link_to_its_page(finished: Recipe) -> None:
    link = metadata_of(finished, "report")["report.html"]
    assert isinstance(link, dg.UrlMetadataValue)
    parts = urlsplit(link.url)
    assert parts.scheme == "file"
    assert Path(unquote(parts.path)).read_text(encoding="utf-8").startswith("<!doctype html>")
