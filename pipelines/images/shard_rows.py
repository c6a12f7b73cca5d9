"""Rows of an image shard that have no image, and the ledger of a shard's rows."""

from collections.abc import Sequence

import pyarrow as pa

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.core.ledger import FORGOTTEN_VERDICT, OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.tombstones import FORGOTTEN
from dualtoken.pipelines.images.shards import FAILED_TO_DOWNLOAD, SUCCESS, ShardRow


def failed_row(row: ShardRow, status: str, reason: str, detail: str) -> ShardRow:
    """Return a row without an image, with img2dataset's status, our reason, and a detail without secrets."""
    return row._replace(status=status, reason=str(reason), error_message=redacted(detail) or str(reason))


def forgotten_row(key: bytes) -> ShardRow:
    """Return the row of a sample that a tombstone names: nothing of it but its key."""
    return ShardRow(
        url=None,
        caption="",
        sample_key=key,
        status=FAILED_TO_DOWNLOAD,
        reason=FORGOTTEN,
        error_message=FORGOTTEN,
    )


def ledger_of_rows(rows: Sequence[ShardRow]) -> pa.Table:
    """Return the ledger of a shard's rows, in their order."""
    keys = [row.sample_key for row in rows]
    return ledger_table(keys, map(_verdict, rows))


def _verdict(row: ShardRow) -> Verdict:
    if row.reason == FORGOTTEN:
        return FORGOTTEN_VERDICT
    if row.status == SUCCESS:
        return OK_VERDICT
    return Verdict(Status.FAILED, row.reason, row.error_message or "")
