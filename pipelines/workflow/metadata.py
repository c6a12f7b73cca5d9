"""What Dagster shows of a finished stage: numbers as numbers, paths as paths, and a link to its page."""

from datetime import datetime
from pathlib import Path

import dagster as dg

from dualtoken.infra.redaction import redacted
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.stages import get_stage

ROOT_HASH = "root_hash"
"""Label of the hash that tells one content from another."""

Metadata = dict[str, dg.MetadataValue]
"""Values by the labels that Dagster shows them under."""


def stage_metadata(job: StageJob, manifest: Manifest) -> Metadata:
    """Return where a finished stage's output is, and what it counts."""
    metadata: Metadata = {
        "folder": dg.MetadataValue.path(redacted(job.folder)),
        "bytes": dg.MetadataValue.int(manifest.bytes),
        "seconds_of_work": dg.MetadataValue.float(manifest.seconds),
        "finished_at": dg.MetadataValue.timestamp(datetime.fromisoformat(manifest.last_finished_at)),
        "units": dg.MetadataValue.int(len(job.units)),
        "version": dg.MetadataValue.int(manifest.version),
        "fingerprint": dg.MetadataValue.text(job.fingerprint),
        ROOT_HASH: dg.MetadataValue.text(manifest.root_hash),
    }
    page = get_stage(job.stage).page
    if page:
        metadata[page] = dg.MetadataValue.url(_link(job.store(), page))
    return metadata | _sample_counts(manifest)


def _sample_counts(manifest: Manifest) -> Metadata:
    """Return the samples in, and of each status; a model has none."""
    if not manifest.counts:
        return {}
    counts: Metadata = {"samples_in": dg.MetadataValue.int(manifest.rows_in)}
    for status, count in manifest.counts.items():
        counts[f"samples_{status}"] = dg.MetadataValue.int(count)
    # The name under which Dagster itself plots rows.
    counts["dagster/row_count"] = dg.MetadataValue.int(manifest.counts.get("ok", 0))
    return counts


def _link(store: Store, name: str) -> str:
    if store.is_local:
        return Path(store.path(name)).as_uri()
    return redacted(join(store.url, name))
