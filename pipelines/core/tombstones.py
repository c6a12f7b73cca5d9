"""Who asked to be forgotten: a corpus's list of keys, addresses and hosts that no run may fetch again.

`<root>/<corpus>/tombstones.json`. Addresses stand there as SHA-256, so that the list itself gives nothing away; hosts stand as they are.
A stage's folder that samples were taken out of holds `forgotten.json`: how often, what its content was known by before, and, while
that is under way, which units are still to be written.
"""

import hashlib
from functools import lru_cache
from urllib.parse import urlsplit

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import Record
from dualtoken.pipelines.errors import UserError

TOMBSTONES_FILE = "tombstones.json"
FORGOTTEN_FILE = "forgotten.json"
FORGOTTEN = "forgotten"
"""The reason of a sample in shards and ledgers."""


class Tombstones(Record):
    """What of a corpus is not to come back."""

    keys: frozenset[str] = frozenset()
    """Hexadecimal; of every sample that was ever taken out."""
    urls: frozenset[str] = frozenset()
    """SHA-256 of each address, hexadecimal."""
    hosts: frozenset[str] = frozenset()
    """In lower case; those below them count too."""

    def match(self, key: bytes, url: str | None) -> bool:
        """Tell whether a sample is to be left out."""
        if not (self.keys or self.urls or self.hosts):
            return False
        return key.hex() in self.keys or (
            url is not None and (url_hash(url) in self.urls or self._match_host(url))
        )

    def _match_host(self, url: str) -> bool:
        parts = host_of(url).split(".")
        return not self.hosts.isdisjoint(".".join(parts[first:]) for first in range(len(parts)))

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(
            keys=self.keys | other.keys, urls=self.urls | other.urls, hosts=self.hosts | other.hosts
        )

    def to_bytes(self) -> bytes:
        """Return the list in order, so that the same one has the same bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class Forgotten(Record):
    """What was done to a stage's folder."""

    version: int
    """Of its content; 1 was the first."""
    lineage: str | None
    """The root hash of version 1, which later steps' fingerprints stay on; None where it was unfinished then."""
    finished: bool
    """Whether there was a manifest, so that there is to be one again; no more once it is there."""
    pending: tuple[str, ...]
    """Units to write; none where all is done."""


def url_hash(url: str) -> str:
    """Return what stands for an address."""
    return hashlib.sha256(url.encode()).hexdigest()


def host_of(url: str) -> str:
    """Return the host of an address in lower case, "" where it has none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def read_tombstones(root: Store, corpus: str) -> Tombstones:
    """Return a corpus's list, empty where nobody was forgotten."""
    try:
        return _parse(root.read(join(corpus, TOMBSTONES_FILE)))
    except FileNotFoundError:
        return Tombstones()


@lru_cache(maxsize=2)  # every unit that is committed reads it, and a host may have had a million samples
def _parse(data: bytes) -> Tombstones:
    return Tombstones.from_bytes(data)


def read_forgotten(store: Store) -> Forgotten | None:
    """Return what was done to a stage's folder, if anything was."""
    return Forgotten.from_bytes(store.read(FORGOTTEN_FILE)) if store.exists(FORGOTTEN_FILE) else None


def require_no_pending_forget(store: Store) -> Forgotten | None:
    """Return the same; raises `UserError` where a `forget` was cut short."""
    forgotten = read_forgotten(store)
    if forgotten and forgotten.pending:
        raise UserError(
            f"{store.url}: `dualtoken forget` was cut short here: run it again first, with the same or any other samples"
        )
    return forgotten
