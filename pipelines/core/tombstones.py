"""Tombstones: a corpus's list of the keys, addresses and hosts that no run may fetch again.

The list is `<root>/<corpus>/tombstones.json`. Addresses stand there as SHA-256, so that the list itself gives
nothing away; hosts stand as they are.

A stage's folder that samples were deleted from holds `forgotten.json`: how often that happened, the root hash
of its content before, and, while a deletion is under way, the units that are still to be written.
"""

import hashlib
from functools import lru_cache

from pydantic import field_serializer

from dualtoken.infra.request_urls import host_of, request_url
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import Record, SingleName
from dualtoken.pipelines.errors import UserError

TOMBSTONES_FILE = "tombstones.json"
FORGOTTEN_FILE = "forgotten.json"
FORGOTTEN = "forgotten"
"""Reason that shards and ledgers give for such a sample."""


class Tombstones(Record):
    """Samples of a corpus that must not come back."""

    keys: frozenset[str] = frozenset()
    """Keys, hexadecimal, of every sample that was ever deleted."""
    urls: frozenset[str] = frozenset()
    """Addresses, each as the SHA-256 in hexadecimal."""
    hosts: frozenset[str] = frozenset()
    """Hosts as `canonical_host` spells them; their subdomains count too."""

    def match(self, key: bytes, url: str | bytes | None) -> bool:
        """Tell whether a sample must be left out; an address counts in all its spellings."""
        if not (self.keys or self.urls or self.hosts):
            return False  # the usual case, for every sample: no hash is taken
        if key.hex() in self.keys:
            return True
        if url is None:
            return False
        if isinstance(url, bytes):  # other people's shards may keep addresses in a binary column
            url = url.decode("utf-8", "surrogateescape")
        return self._match_url(url) or self._match_host(url)

    def _match_url(self, url: str) -> bool:
        if not self.urls:
            return False
        return url_hash(url) in self.urls or _sha256(url) in self.urls

    def _match_host(self, url: str) -> bool:
        """Tell whether an address's host, or a domain that it is below, is in the list."""
        if not self.hosts:
            return False
        hosts = _canonical_hosts(self.hosts)
        domain = host_of(url)
        while domain not in hosts:
            _, dot, domain = domain.partition(".")
            if not dot:
                return False
        return True

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(
            keys=self.keys | other.keys, urls=self.urls | other.urls, hosts=self.hosts | other.hosts
        )

    @field_serializer("keys", "urls", "hosts", when_used="json")
    def _in_order(self, values: frozenset[str]) -> list[str]:
        """Sort what is stored, so that an equal list has equal bytes."""
        return sorted(values)


class Forgotten(Record):
    """Record of the deletions from a stage's folder."""

    version: int
    """Version of its content; 1 was the first."""
    lineage: str | None
    """Root hash of version 1, which later stages' fingerprints keep; None where it was unfinished then."""
    finished: bool
    """Whether there was a manifest, so that one must be written again; false once that is done."""
    pending: tuple[SingleName, ...]
    """Units that are still to be written; none where all is done."""


def url_hash(url: str) -> str:
    """Return the hash that stands for an address in the list, the same for all spellings of one request."""
    try:
        return _sha256(str(request_url(url)))
    except ValueError:  # not fetched, so that its letters are all that it is
        return _sha256(url)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=2)
def _canonical_hosts(hosts: frozenset[str]) -> frozenset[str]:
    """Return the list's hosts in their one spelling, which older lists may not have."""
    return frozenset(host_of(f"//{host}") or host for host in hosts)


def read_tombstones(root: Store, corpus: str) -> Tombstones:
    """Return a corpus's tombstones; an empty list where nobody asked to be forgotten."""
    try:
        name = join(corpus, TOMBSTONES_FILE)
        return _parse(root.read(name), join(root.url, name))
    except FileNotFoundError:
        return Tombstones()


@lru_cache(maxsize=2)  # every unit that is committed reads it, and a host may have had a million samples
def _parse(data: bytes, place: str) -> Tombstones:
    return Tombstones.from_bytes(data, place)


def read_forgotten(store: Store) -> Forgotten | None:
    """Return the record of deletions from a stage's folder; None where nothing was deleted."""
    if not store.exists(FORGOTTEN_FILE):
        return None
    return Forgotten.read(store, FORGOTTEN_FILE)


def require_no_pending_forget(store: Store) -> Forgotten | None:
    """Return the record of deletions likewise; raises `UserError` where a `forget` was cut short."""
    forgotten = read_forgotten(store)
    if forgotten and forgotten.pending:
        raise UserError(
            f"{store.url}: `dualtoken forget` was cut short here: "
            "run it again first, with the same or any other samples"
        )
    return forgotten
