"""What a training cannot read: damaged shards and images, each named in one line and counted.

A damaged shard is noted in the run's folder, `logs/damaged/<corpus>-<shard>.json`, by whichever rank meets it
first. It is lost for as long as the process lives; a run that is started again tries it anew.
"""

import json
import sys
from datetime import UTC, datetime
from threading import Lock

from dualtoken.infra.storage import Store
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.training.sample_index import SampleIndex

FOLDER = "logs/damaged"


class DamageLog:
    """The samples that are lost to one process; may be used by several threads."""

    def __init__(self, store: Store, index: SampleIndex, *, ends_run: bool) -> None:
        """Note damaged shards in `store`; with `ends_run` the first of them raises `UserError`."""
        self._store = store
        self._index = index
        self._ends_run = ends_run
        self._lock = Lock()
        self._shards: set[int] = set()
        self._images: dict[int, int] = {}
        """Shards of damaged images, by row."""

    def is_lost(self, row: int, shard: int) -> bool:
        """Tell whether a sample, or its shard, could not be read before."""
        return shard in self._shards or row in self._images

    @property
    def num_lost(self) -> int:
        """Samples that are lost so far, those of damaged shards included."""
        with self._lock:
            lost = sum(self._index.num_samples(shard) for shard in self._shards)
            for shard in self._images.values():
                lost += shard not in self._shards
            return lost

    def lose_shard(self, number: int, error: DamagedShardError) -> None:
        """Note a damaged shard; its samples are lost from now on."""
        if self._ends_run:
            raise UserError(f"{error} (or set reader.on_damage=quarantine to go on without it)") from error
        with self._lock:
            if number in self._shards:
                return
            self._shards.add(number)
        corpus, shard = self._index.name(number)
        samples = self._index.num_samples(number)
        note = {
            "corpus": corpus,
            "shard": shard,
            "samples": samples,
            "folder": error.url,
            "file": error.name,
            "reason": error.problem,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._store.put_if_absent((json.dumps(note) + "\n").encode(), f"{FOLDER}/{corpus}-{shard}.json")
        self._say(f"{error}; training takes others in place of its {samples:,} samples")

    def lose_image(self, row: int, shard: int, key: bytes, reason: str) -> None:
        """Note an image that cannot be decoded."""
        with self._lock:
            if row in self._images:
                return
            self._images[row] = shard
        self._say(
            f"the image of sample {key.hex()} is damaged ({reason}): training takes another in its place"
        )

    def _say(self, line: str) -> None:
        print(f"{line}; {self.num_lost:,} of {self._index.num_rows:,} so far", file=sys.stderr, flush=True)
