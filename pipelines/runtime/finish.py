"""What a stage adds once every unit has its receipt: a corpus's token index and card, and details for its manifest."""

from collections.abc import Iterator, Sequence

from dualtoken.pipelines.core.commit import StageContent, commit_manifest
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.tokens.facts import TokenDetails
from dualtoken.pipelines.tokens.finish import finish_tokens

PRIVATE = "failed:private_address"


def finish(job: StageJob) -> Manifest:
    """Write what a stage adds to its units' files, then its manifest."""
    content = StageContent(job)
    details, files = finish_tokens(content) if job.stage == "pretokenize" else ({}, [])
    return commit_manifest(content, details, files)


def user_warnings(manifest: Manifest) -> Iterator[str]:
    """Yield what a user should know of a stage that is finished all the same."""
    devices: Sequence[str] = ()
    if manifest.stage == "pretokenize":
        devices = TokenDetails.of(manifest).devices or ()
    if len(devices) > 1:
        said = "its shards were made by devices that may round otherwise, so that equal images may have other codes"
        yield f"{said}: {'; '.join(devices)} (`dualtoken verify --deep` tells how many)"
    if private := manifest.counts.get(PRIVATE):
        said = f"{private} of {manifest.rows_in} URLs lead into a private network, which a table of the web's must not reach"
        yield f"{said}: if the servers are yours, set download.allow_private_addresses=true and run again"
