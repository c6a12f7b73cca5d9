"""Shards that a run goes on without: each damaged one stands in a ledger, with the rows that are lost by it.

The ledger is a file of JSON lines that all ranks and workers of a run share; a shard has one line there, whoever met it first.
"""

import fcntl
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from infra.storage import join
from pipelines.checked_files import DamagedShardError
from pipelines.mapped_shards import Rows
from pipelines.token_reader import TokenDataset


class Quarantine:
    """Tells which rows are lost, and writes down why."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self._damaged: dict[tuple[str, int, bool], bool] = {}

    def lost(self, dataset: TokenDataset, rows: Rows, *, captions: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows cannot be read: their codes or, with `captions`, their captions."""
        shards = dataset.shards_of(rows)
        return np.isin(shards, [shard for shard in np.unique(shards) if self._is_damaged(dataset, int(shard), captions)])

    def _is_damaged(self, dataset: TokenDataset, shard: int, captions: bool) -> bool:
        place = (dataset.url, shard, captions)
        if place not in self._damaged:
            self._damaged[place] = False
            try:
                dataset.touch(shard, codes=not captions, captions=captions)
            except DamagedShardError as error:
                self._damaged[place] = True
                self._write(dataset, shard, error)
        return self._damaged[place]

    def _write(self, dataset: TokenDataset, shard: int, error: DamagedShardError) -> None:
        name, rows = dataset.shard_name(shard)
        # Captions may be another dataset's.
        file = error.name if error.url == dataset.url else join(error.url, error.name)
        entry = {"dataset": dataset.url, "fingerprint": dataset.fingerprint, "shard": name, "file": file, "rows": rows}
        entry |= {"reason": error.problem, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        with self.ledger.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = [json.loads(line) for line in file]
            if not any(line["dataset"] == entry["dataset"] and line["file"] == entry["file"] for line in known):
                file.write(json.dumps(entry) + "\n")
                file.flush()


def read_quarantine(ledger: Path) -> list[dict[str, Any]]:
    """Return the entries of a ledger, none where there is no file: nothing was lost."""
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()] if ledger.exists() else []
