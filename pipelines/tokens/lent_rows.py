"""Rows that stand side by side in a shard, lent to a batch as they lie in memory: nothing is copied.

A batch is its user's own: it stays valid and unchanged for as long as anybody holds it or a view of it, and
what is written into it is seen nowhere else. For that,

1. a shard's file is mapped a second time, privately: the kernel gives whoever writes a copy of the page, so
   that neither the file nor the map that rows are copied from changes;
2. rows are lent to one batch at a time: they are copied for another one that asks while it is held;
3. when a batch is let go, the kernel is asked whether its pages were written to (`/proc/self/pagemap`,
   https://docs.kernel.org/admin-guide/mm/pagemap.html). If so, the shard lends no more, and its private map
   ends with the last batch of it: a later epoch reads what the file says, and a user who writes into batches
   gets copies, which cost no page faults and no memory beside.

Where there is no such file (other systems, some sandboxes) nothing is lent.

Measured on 2026-11-29 (AMD EPYC without AVX-512, virtual machine with load 5 to 13, one core, CPU time of 64
rows of 2 x 729 x 8 codes): lent 27 us, 20 of them for rule 3; copied 92 us. With all codes read as int32
behind that, 137 and 165 us. A private map for each batch, which needs none of the rules, costs 42 us, and 220
with all codes read: its page faults cost more than the copy. Of the whole loader, a sample in order takes 2.5
us lent and 3.1 copied where two codes of it are read, and the same, 4.2 to 4.9 us, where all are: a copy
leaves them in the processor's cache.

WARNING: as with all maps, a file that is cut short while it is mapped ends the process with SIGBUS; replacing
or removing it does no harm. A file's blocks stay on disk for as long as a batch of it is held.
"""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint16]]
"""Rows of 16-bit values, (B, V)."""
LEAST_BYTES = 1 << 17
"""Size of the rows from which on lending them pays; a copy of fewer is as fast."""
_PAGEMAP = Path("/proc/self/pagemap")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENTRY_BYTES = 8
_OF_A_FILE = np.uint64(1 << 61)
"""Bit of a page that is a file's own, not the copy that the kernel made for a writer."""
_IN_MEMORY_OR_SWAP = np.uint64(3 << 62)
"""Bits of a page that exists; others were never touched."""


class _Loan:
    """Memory of lent rows, which NumPy reads by its array interface and holds as the base of every view."""

    def __init__(self, owner: object, address: int, shape: tuple[int, int]) -> None:
        self.owner = owner
        """Private map, which lasts for as long as this does."""
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<u2",
            "data": (address, False),
            "shape": shape,
        }


class RowLender:
    """Lends rows of one shard's file to batches."""

    def __init__(self, path: Path, inode: int) -> None:
        """Map nothing yet; `inode` is the checked file's, since the path may come to name another."""
        self._path = path
        self._inode = inode
        self._is_open = _PAGEMAP.exists()
        """Whether rows are lent, as far as is known."""
        self._map: Any = None
        """The file as a tensor of 16-bit words; None before the first loan, and after the last."""
        self._lent: dict[tuple[int, int], None] = {}
        """Ranges of addresses that batches hold."""

    def lend(self, offset: int, shape: tuple[int, int]) -> Words | None:
        """Return rows of `shape`, (B, V), as they lie in the file, writable; None where they must be copied.

        `offset` is that of the first in the file, an even number of bytes.
        """
        size = 2 * shape[0] * shape[1]
        if not self._is_open:
            return None
        if self._map is None:
            self._map = self._mapped()
        if self._map is None or offset + size > self._map.nbytes:
            return None
        begin = self._map.data_ptr() + offset
        end = begin + size
        # A copy, since a batch may be let go, in another thread too, while one looks.
        for other_begin, other_end in self._lent.copy():
            if begin < other_end and other_begin < end:
                return None
        loan = _Loan(self._map, begin, shape)
        self._lent[begin, end] = None
        weakref.finalize(loan, self._take_back, self._map, begin, end).atexit = False
        return np.asarray(loan)

    def _mapped(self) -> Any:  # noqa: ANN401  (a tensor; torch is not imported here)
        """Return a private map of the checked file; None, and lend no more, where there is none to be had."""
        import torch  # noqa: PLC0415  (seconds that a look at a few rows need not wait)

        words = None
        try:
            num_words = self._path.stat().st_size // 2
            # Not shared: mapped privately, writable, and without a descriptor that stays open.
            words = torch.from_file(str(self._path), shared=False, size=num_words, dtype=torch.uint16)
            is_checked_file = self._path.stat().st_ino == self._inode
        except (OSError, RuntimeError):
            # Replaced, evicted from its cache, or more maps than the system allows: rows can be copied still.
            is_checked_file = False
        if not is_checked_file:
            self._is_open = False
            return None
        return words

    def _take_back(self, _map: object, begin: int, end: int) -> None:
        """End a loan; `_map` is the map that it is of, which is there until then."""
        del self._lent[begin, end]
        if _written(begin, end):
            self._is_open = False
            self._map = None


def _written(begin: int, end: int) -> bool:
    """Tell whether any page of a range of addresses of a private map was written to; True if unknown."""
    first = begin // _PAGE_BYTES
    last = -(-end // _PAGE_BYTES)
    try:
        # Opened each time: a fork's descriptor would go on telling of its parent's memory.
        descriptor = os.open(_PAGEMAP, os.O_RDONLY)
        try:
            entries = os.pread(descriptor, (last - first) * _ENTRY_BYTES, first * _ENTRY_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return True
    pages = np.frombuffer(entries, np.uint64)
    exists = (pages & _IN_MEMORY_OR_SWAP) != 0
    is_copy = (pages & _OF_A_FILE) == 0
    return len(pages) != last - first or bool((exists & is_copy).any())
