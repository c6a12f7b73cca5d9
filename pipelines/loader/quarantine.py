"""Shards that a run goes on without: each damaged one stands in a ledger, with the rows that are lost by it.

The ledger is a file of JSON lines that all ranks and workers of a run share; a damaged file has one line there, whoever met it first.
What stands there when a run begins is lost from its beginning, until the line is taken out.
"""

import fcntl
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dualtoken.infra.storage import join
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.reader import TokenDataset

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Shards = set[tuple[str, int, bool]]
"""Folders of datasets, numbers of shards, and whether captions are meant, else codes."""


class Quarantine:
    """Tells which rows are lost, and writes down why."""

    def __init__(self, ledger: Path, datasets: Sequence[TokenDataset]) -> None:
        self.ledger = ledger
        self._datasets = {dataset.url: dataset for dataset in datasets}
        self._at_first: Shards = set()
        for line in read_quarantine(ledger):
            dataset = self._datasets.get(line["dataset"])
            if dataset and dataset.fingerprint == line["fingerprint"]:
                self._at_first.add((dataset.url, dataset.shard_number(line["shard"]), line["captions"]))
        self._damaged = set(self._at_first)

    def lost(self, dataset: TokenDataset, rows: Rows, *, captions: bool, at_first: bool = False) -> Flags:
        """Return which rows cannot be read: their codes or, with `captions`, their captions.

        With `at_first` those that the ledger named when this run began, which are the same on all ranks.
        """
        known = self._at_first if at_first else self._damaged
        numbers = [number for url, number, what in known if (url, what) == (dataset.url, captions)]
        return np.isin(dataset.shards_of(rows), numbers) if numbers else np.zeros(len(rows), bool)

    def add(self, error: DamagedShardError, *, captions: bool) -> None:
        """Write a damaged shard into the ledger; its rows are lost from now on."""
        assert error.shard is not None, "a dataset says which of its shards it is"
        url, number = error.shard
        self._damaged.add((url, number, captions))
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
        }
        entry |= {"reason": error.problem, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        same = ("dataset", "fingerprint", "file")
        with self.ledger.open("a+", encoding="utf-8") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            out.seek(0)
            if not any(all(line[key] == entry[key] for key in same) for line in map(json.loads, out)):
                out.write(json.dumps(entry) + "\n")
                out.flush()


def read_quarantine(ledger: Path) -> list[dict[str, Any]]:
    """Return the entries of a ledger, none where there is no file: nothing was lost."""
    if not ledger.exists():
        return []
    with ledger.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return [json.loads(line) for line in file]
