"""Identifies files by their content: a SHA-256 of local ones, the store's own tag of remote ones.

A plan is made often and a corpus may have terabytes, so hashes of local files are remembered in the user's
cache folder (`$XDG_CACHE_HOME/dualtoken/hashes`, by default below `~/.cache`), one JSON file a folder. A
remembered hash counts while the file has the same inode, size, time of last change and time of last change of
its status. The last of these is set by the system alone, so a file that was rewritten in place, with its
size and time kept, is read again. So is a file that changed so lately that a further change could leave all
four as they are.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dualtoken.infra.digests import digest, digest_stream
from dualtoken.infra.local_files import replace_file
from dualtoken.infra.storage import Store, StoredFile
from dualtoken.pipelines.core.threads import map_ahead

SETTLED_SECONDS = 3
"""Age from which a file's times tell a later change; the coarsest file system counts in steps of 2 s."""
_Remembered = dict[str, list[Any]]
"""By path: inode, bytes, two times in nanoseconds, and the SHA-256."""


def content_ids(store: Store, files: Iterable[StoredFile]) -> dict[str, dict[str, Any]]:
    """Return by name what identifies each file's content, as JSON values; several files are read at a time.

    Raises `OSError` where one cannot be read.
    """
    if store.is_local:
        return _local_ids(store, [file.name for file in files])
    listed = list(files)
    ids = map_ahead(lambda file: _remote_id(store, file), listed)
    return dict(zip([file.name for file in listed], ids, strict=True))


def _remote_id(store: Store, file: StoredFile) -> dict[str, Any]:
    if file.tag:
        return {"bytes": file.bytes, "checksum": file.tag}
    with store.open(file.name) as stream:
        return {"sha256": digest_stream(stream).sha256}


def _local_ids(store: Store, names: list[str]) -> dict[str, dict[str, Any]]:
    remembered_file = _remembered_file(store.root)
    before = _remembered(remembered_file)
    after: _Remembered = {}
    ids: dict[str, dict[str, Any]] = {}
    for name, entry, is_settled in map_ahead(lambda name: _hashed(store, name, before.get(name)), names):
        ids[name] = {"sha256": entry[-1]}
        if is_settled:
            after[name] = entry
    if after.keys() - before.keys() or any(before[name] != entry for name, entry in after.items()):
        _remember(remembered_file, before | after)
    return ids


def _hashed(store: Store, name: str, remembered: list[Any] | None) -> tuple[str, list[Any], bool]:
    """Return a file's name, what to remember of it, and whether that may be remembered."""
    path = Path(store.path(name))
    asked_at = time.time()
    state = _state(path)
    if isinstance(remembered, list) and remembered[:-1] == state:
        return name, remembered, True
    entry = [*state, digest(path).sha256]
    changed_at = state[-1] / 1e9
    is_settled = changed_at < asked_at - SETTLED_SECONDS and _state(path) == state
    return name, entry, is_settled


def _state(path: Path) -> list[Any]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remembered_file(folder: str) -> Path | None:
    """Return where hashes of a folder's files are remembered; None for a user without a home folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  (`~` may stay)
    if not os.path.isabs(caches):  # noqa: PTH117  (of text)
        return None
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return Path(caches) / "dualtoken/hashes" / f"{name}.json"


def _remembered(file: Path | None) -> _Remembered:
    """Return the hashes that were remembered; none where they cannot be read, since files can."""
    if file is not None:
        with suppress(OSError, ValueError):
            remembered = json.loads(file.read_bytes())
            if isinstance(remembered, dict):
                return remembered
    return {}


def _remember(file: Path | None, hashes: _Remembered) -> None:
    """Remember hashes for the next plan, unless the folder may not be written: that only costs time."""
    if file is not None:
        with suppress(OSError):
            replace_file(str(file), lambda part: part.write_text(json.dumps(hashes), encoding="ascii"))
