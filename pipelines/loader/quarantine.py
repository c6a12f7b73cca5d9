"""Quarantine: a run goes on without damaged shards, and a ledger names each of them with the rows that are lost.

The ledger is a file of JSON lines that all ranks and workers of a run share. A damaged file has one line there,
whichever process found it first. What the ledger names when a run begins is lost from the beginning, until somebody
takes the line out.
"""

import fcntl
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualtoken.infra.storage import join
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.reader import TokenDataset

Mask = np.ndarray[Any, np.dtype[np.bool_]]
_SAME_DAMAGE = ("dataset", "fingerprint", "file")
"""Keys of a ledger's entry that name what is damaged."""


class DamagedShard(NamedTuple):
    """A shard that cannot be read."""

    dataset: str
    """URL of its dataset."""
    number: int
    captions: bool
    """Whether its captions are damaged, else its codes."""


class Quarantine:
    """Knows which rows are lost, and records why."""

    def __init__(self, ledger: Path, datasets: Sequence[TokenDataset]) -> None:
        self.ledger = ledger
        self._datasets = {dataset.url: dataset for dataset in datasets}
        self._damaged_at_start: set[DamagedShard] = set()
        for entry in read_quarantine(ledger):
            dataset = self._datasets.get(entry["dataset"])
            if dataset and dataset.fingerprint == entry["fingerprint"]:
                number = dataset.shard_number(entry["shard"])
                self._damaged_at_start.add(DamagedShard(dataset.url, number, entry["captions"]))
        self._damaged = set(self._damaged_at_start)

    def lost(self, dataset: TokenDataset, rows: Rows, *, captions: bool, at_start: bool = False) -> Mask:
        """Return which rows cannot be read: their codes or, with `captions`, their captions.

        With `at_start`, only what the ledger named when this run began counts, which is the same on all ranks.
        """
        damaged = self._damaged_at_start if at_start else self._damaged
        numbers = [
            shard.number for shard in damaged if shard.dataset == dataset.url and shard.captions == captions
        ]
        if not numbers:
            return np.zeros(len(rows), bool)
        return np.isin(dataset.shards_of(rows), numbers)

    def add(self, error: DamagedShardError, *, captions: bool) -> None:
        """Record a damaged shard in the ledger; its rows are lost from now on."""
        assert error.shard is not None, "a dataset says which of its shards it is"
        url, number = error.shard
        self._damaged.add(DamagedShard(url, number, captions))
        dataset = self._datasets[url]
        name, rows = dataset.shard_name(number)
        # Captions may be another dataset's.
        file = error.name if error.url == url else join(error.url, error.name)
        entry = {
            "dataset": url,
            "fingerprint": dataset.fingerprint,
            "shard": name,
            "captions": captions,
            "file": file,
            "rows": rows,
            "reason": error.problem,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._append_once(entry)

    def _append_once(self, entry: dict[str, Any]) -> None:
        """Append an entry unless another process did; the lock keeps the others out meanwhile."""
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        with self.ledger.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            for line in file:
                recorded = json.loads(line)
                if all(recorded[key] == entry[key] for key in _SAME_DAMAGE):
                    return
            file.write(json.dumps(entry) + "\n")
            file.flush()


def read_quarantine(ledger: Path) -> list[dict[str, Any]]:
    """Return the entries of a ledger; none where there is no file, since nothing was lost."""
    if not ledger.exists():
        return []
    with ledger.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return [json.loads(line) for line in file]
