"""Of some processes that want to do the same thing one becomes its owner: the one whose record has the name.

A record is put only if absent, which decides it. Some stores put it all the same, over the one that is there.
There each process puts a bid of its own first, waits until the others' must be there to see, and the lowest
has the name::

    bids/<name>/<token>.json

Of two bids one is there when the other's owner looks, or its own owner looks later and finds the record. This
holds while a put takes less than half of `SETTLES`.
"""

import time
from datetime import timedelta
from typing import TypeVar

from dualtoken.pipelines.core.receipts import MAX_CLOCK_SKEW
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.records import OwnerRecord, moment

BIDS = "bids"
SETTLES = 5.0
"""Seconds that a bid waits before it is compared with the others."""
_BID_ENDS = timedelta(minutes=1) + MAX_CLOCK_SKEW
"""Age from which a bid is one of a process that died."""

_OwnerT = TypeVar("_OwnerT", bound=OwnerRecord)


def become_owner(history: History, record: _OwnerT, name: str) -> _OwnerT:
    """Put a record where none is, and return the owner's: this one, unless another process was first.

    Takes `SETTLES` on a store without conditional puts.
    """
    if history.puts_only_if_absent:
        history.put(record, name)
        return history.get(type(record), name)
    bids = f"{BIDS}/{name.removesuffix('.json')}"
    own_bid = f"{bids}/{record.token}.json"
    history.put(record, own_bid)
    try:
        time.sleep(SETTLES)
        owner = _owner_by_bids(history, record, name, bids)
        if owner.token == record.token:
            history.put(record, name)
    finally:
        history.store.remove(own_bid)
    return owner


def _owner_by_bids(history: History, record: _OwnerT, name: str, bids: str) -> _OwnerT:
    """Return the owner; looks again where looking took so long that another may have become it meanwhile."""
    while True:
        began = time.monotonic()
        rival = _lower_bid(history, record, bids)
        # After the bids: an owner's bid goes once its record is there.
        if history.store.exists(name):
            return history.get(type(record), name)
        if rival is not None:
            return rival
        if time.monotonic() - began < SETTLES / 2:
            return record


def _lower_bid(history: History, record: _OwnerT, bids: str) -> _OwnerT | None:
    """Return the lowest bid below a process's own, without those of the dead; None where its own is it."""
    for name, _ in history.store.files(bids):
        try:
            bid = history.get(type(record), name)
        except FileNotFoundError:
            continue
        if bid.token >= record.token:
            return None
        if not bid.is_dead_here() and moment(record.started_at) <= moment(bid.started_at) + _BID_ENDS:
            return bid
    return None
