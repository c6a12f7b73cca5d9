"""Finishes a stage once every unit has its receipt: the files of the stage as a whole, then its manifest."""

from collections.abc import Iterator

from dualtoken.pipelines.core.commit import StageContent, commit_manifest
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.images.folder_told import folder_notes
from dualtoken.pipelines.runtime.stages import get_stage

PRIVATE_ADDRESSES = "failed:private_address"


def finish(job: StageJob) -> Manifest:
    """Write what the stage adds to its units' files, then its manifest; return the manifest."""
    content = StageContent(job)
    add_files = get_stage(job.stage).finish
    if add_files is None:
        return commit_manifest(content, {}, [])
    extras = add_files(content)
    return commit_manifest(content, extras.details, extras.files)


def user_warnings(manifest: Manifest) -> Iterator[str]:
    """Yield what a user should know of a stage that is finished all the same."""
    devices = manifest.details.get("devices", [])
    if len(devices) > 1:
        yield (
            "its shards were made by devices that may round otherwise, "
            "so that equal images may have other codes: "
            f"{'; '.join(devices)} (`dualtoken verify --deep` tells how many)"
        )
    if manifest.stage == "download" and manifest.rows_in and not manifest.counts.get("ok"):
        reasons = sorted(manifest.counts.items(), key=lambda reason: -reason[1])
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons)
        yield f"none of {manifest.rows_in} rows gave an image ({shown}): later stages have nothing to work on"
    yield from folder_notes(manifest.details)
    private = manifest.counts.get(PRIVATE_ADDRESSES)
    if private:
        yield (
            f"{private} of {manifest.rows_in} URLs lead into a private network, "
            "which a table of the web's must not reach: "
            "if the servers are yours, set download.allow_private_addresses=true and run again"
        )
