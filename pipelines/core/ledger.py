"""The ledger: one row per input sample and stage, so that the rows of all statuses add up to the rows in.

A sample's key is 16 bytes of a hash over its corpus and its row in the source, so it depends on neither
order, worker nor retry.
"""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.infra.redaction import redacted

KEY_BYTES = 16
"""Size of a sample's key."""


class Status(StrEnum):
    """Outcome of a sample in a stage; a closed list."""

    OK = "ok"
    """It went on to the output."""
    REJECTED = "rejected"
    """A rule of the recipe dropped it; the reason is the rule's name."""
    FAILED = "failed"
    """It could not be fetched or read; the reason names the cause."""
    FORGOTTEN = "forgotten"
    """Somebody asked for it to be taken out, or not to be fetched."""


class Verdict(NamedTuple):
    """A stage's decision on one sample: a row of the ledger without its key."""

    status: Status
    reason: str = ""
    """Name from a closed list; empty where the status is ok."""
    detail: str = ""
    """Free text for people."""


OK_VERDICT = Verdict(Status.OK)
FORGOTTEN_VERDICT = Verdict(Status.FORGOTTEN)


LEDGER_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""`reason` is from a closed list and empty where the status is ok; `detail` is free text for people."""


def sample_key(corpus: str, row: int) -> bytes:
    """Return the key of a corpus's source row (0 is the first)."""
    return hashlib.blake2b(f"{corpus}\0{row}".encode(), digest_size=KEY_BYTES).digest()


def key_fraction(key: bytes) -> float:
    """Map a key to [0, 1), evenly, to split a corpus by."""
    return int.from_bytes(key[:8], "big") / 2**64


def key_fractions(keys: Sequence[bytes]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return `key_fraction` of many keys at once."""
    words = np.frombuffer(b"".join(keys), ">u8")[::2]
    return words.astype(np.float64) / 2.0**64


def ledger_table(keys: Sequence[bytes], verdicts: Iterable[Verdict]) -> pa.Table:
    """Build a unit's ledger from its keys and their verdicts, in the same order."""
    rows = []
    for key, (status, reason, detail) in zip(keys, verdicts, strict=True):
        rows.append({"key": key, "status": status.value, "reason": reason, "detail": redacted(detail)})
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def count_statuses(ledger: pa.Table) -> dict[str, int]:
    """Count rows by status and reason, such as `ok`, `failed:http_404` and `rejected:min_side`."""
    groups = ledger.group_by(["status", "reason"]).aggregate([([], "count_all")])
    counts: dict[str, int] = {}
    for group in groups.to_pylist():
        name = group["status"]
        if group["reason"]:
            name = f"{name}:{group['reason']}"
        counts[name] = group["count_all"]
    return dict(sorted(counts.items()))


def check_closed(ledger: pa.Table, rows: int) -> None:
    """Assert that a unit's ledger accounts for every row once; one that does not close is our bug."""
    assert len(ledger) == rows, f"ledger has {len(ledger)} rows of {rows}"
    assert len(ledger["key"].unique()) == rows, "ledger has a key twice"
    assert set(ledger["status"].unique().to_pylist()) <= set(Status), "ledger has an unknown status"
