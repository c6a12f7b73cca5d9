"""Checks that what a download reads still has the content that it was planned with."""

from collections.abc import Sequence

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.content import content_ids
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.errors import UserError


def require_planned_content(stage: Store, source: Store, names: Sequence[str]) -> None:
    """Raise `UserError` where a source's file is not the one that the identity of a stage's folder names."""
    if not stage.exists(STAGE_FILE):
        return  # a worker that runs outside a plan
    record = StageRecord.read(stage, STAGE_FILE)
    planned = record.identity["settings"]["source"]["files"]
    files = [file for file in map(source.entry, names) if file is not None]
    found = content_ids(source, files)
    for name in names:
        if found.get(name) != planned.get(name):
            raise UserError(
                f"{join(source.url, name)} was changed since this download was begun: "
                "run it again, into a folder of its own"
            )


def require_planned_rows(stage: Store, shard: int, digest: str, source: str) -> None:
    """Raise `UserError` where a shard's rows of a folder are not those that the stage's identity has."""
    if not stage.exists(STAGE_FILE):
        return  # a worker that runs outside a plan
    record = StageRecord.read(stage, STAGE_FILE)
    if record.identity["settings"]["source"]["shards"][shard] != digest:
        raise UserError(
            f"{source} was changed since this download was begun: run it again, into a folder of its own"
        )
