"""Where files live: a local folder or any fsspec URL, with the few operations that commits are made of.

No rename is assumed. A file is written to local scratch, closed, hashed, uploaded, its size read back; a
small marker is then put only if absent (`O_EXCL` and link locally, `If-None-Match: *` on S3).
"""

import copy
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dualtoken.infra.local_files import PART, list_files, move_or_copy, replace, sync_folder, write_durably

PROBE = ".probe-"
READ_AT_ONCE = 1024
"""Small files asked for at once of a remote store; the client bounds its own connections."""


class StoredFile(NamedTuple):
    """What a listing says of a file."""

    name: str
    bytes: int
    modified: float
    """Seconds since 1970, by the clock of whoever stores it."""

    @property
    def is_leftover(self) -> bool:
        """Whether a killed write left it behind."""
        base = self.name.rpartition("/")[2]
        return base.startswith(".") and (base.endswith(PART) or base.startswith(PROBE))


def join(folder: str, *names: str) -> str:
    """Join a folder (path or URL) and names with slashes."""
    return "/".join([folder.rstrip("/"), *(name.strip("/") for name in names)])


class Store:
    """One folder of a file system; names are relative to it, with slashes."""

    def __init__(self, url: str) -> None:
        self.fs: Any
        # Others write here too, so a listing is good for one look.
        self.fs, self.root = fsspec.url_to_fs(url, use_listings_cache=False)
        self.root = self.root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)
        self._is_s3 = hasattr(self.fs, "call_s3")
        # With more than one connection for a file, s3fs would ask for its size first.
        self._small = {"max_concurrency": 1} if self._is_s3 else {}

    def path(self, name: str = "") -> str:
        """Return the name as the file system spells it."""
        return f"{self.root}/{name}" if name else self.root

    def at(self, name: str) -> "Store":
        """Return a folder below this one."""
        return Store(join(self.url, name))

    def beside(self, name: str) -> "Store":
        """Return a folder beside this one, with the same client."""
        other = copy.copy(self)
        other.root, other.url = (f"{place.rsplit('/', 1)[0]}/{name}" for place in (self.root, self.url))
        return other

    def exists(self, name: str) -> bool:
        """Tell whether a file is there; of a store that does not answer, raise its error."""
        return self.size(name) is not None

    def entry(self, name: str) -> StoredFile | None:
        """Return what a listing would say of a file now, its time to the second, or None where there is no such file."""
        try:
            info = self.fs.info(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return StoredFile(name, int(info["size"]), _modified(info)) if info["type"] == "file" else None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is no such file."""
        found = self.entry(name)
        return found.bytes if found else None

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        if self.is_local:
            with open(self.path(name), "rb") as file:  # noqa: PTH123  (a path per file would double the time)
                return file.read()
        return bytes(self.fs.cat_file(self.path(name), **self._small))

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of small files in their order; a remote store is asked for many at a time."""
        if self.is_local:
            yield from ((name, self.read(name)) for name in names)
            return
        waiting = iter(names)
        while some := list(islice(waiting, READ_AT_ONCE)):
            contents = self.fs.cat([self.path(name) for name in some], **self._small)
            yield from ((name, bytes(contents[self.path(name)])) for name in some)

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, bytes) of every file below a folder, in order of name, but what a killed write left behind."""
        yield from ((file.name, file.bytes) for file in self.entries(folder) if not file.is_leftover)

    def entries(self, folder: str = "") -> Iterator[StoredFile]:
        """Yield every file below a folder, in order of name, with its time; what a killed write left behind too.

        Holds one local folder's names, or one page of an S3 listing, however many files there are.
        """
        start = self.path(folder)
        found = (
            list_files(start)
            if self.is_local
            else self._s3_files(start)
            if self._is_s3
            else self._found(start)
        )
        for path, size, modified in found:
            yield StoredFile(path.removeprefix(self.root).lstrip("/"), size, modified)

    def _s3_files(self, start: str) -> Iterator[tuple[str, int, float]]:
        """List by pages of up to 1,000 keys; s3fs itself would keep all of them, and a kilobyte of each."""
        bucket, key, _ = self.fs.split_path(start)
        request = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **self.fs.req_kw}
        while True:
            try:
                page = self.fs.call_s3("list_objects_v2", **request)
            except FileNotFoundError:
                return
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield f"{bucket}/{entry['Key']}", int(entry["Size"]), entry["LastModified"].timestamp()
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _found(self, start: str) -> Iterator[tuple[str, int, float]]:
        try:
            found = self.fs.find(start, detail=True)
        except FileNotFoundError:
            return
        for path, info in sorted(found.items()):
            yield path, int(info["size"]), _modified(info)

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders right below a folder, in order."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = (str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory")
        return sorted(path.removeprefix(self.root).lstrip("/") for path in paths)

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def remove_empty_folders(self, top: str) -> None:
        """Delete the folders at and below `top` that hold nothing; object stores have none."""
        if self.is_local:
            for folder, _, _ in os.walk(self.path(top), topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()

    def put(self, source: Path, name: str, *, move: bool = False) -> None:
        """Copy a closed local file here, replacing any, and read its size back; with `move` the source may be gone then.

        Raises `OSError` when what arrived has another size.
        """
        target, expected = self.path(name), source.stat().st_size
        if self.is_local:
            replace(
                target, lambda part: move_or_copy(source, part) if move else shutil.copyfile(source, part)
            )
        else:
            # Where a large upload's last reply is lost, s3fs asks again, and takes an upload that has ended for one that is not there.
            _twice(lambda: self.fs.put_file(str(source), target))
            self.fs.invalidate_cache(target)
        if (arrived := self.size(name)) != expected:
            raise OSError(f"{target}: {arrived} bytes arrived of {expected}; try again")

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write a small file, replacing any."""
        if self.is_local:
            replace(self.path(name), lambda part: part.write_bytes(data))
        else:
            self.fs.pipe_file(self.path(name), data)
            self.fs.invalidate_cache(self.path(name))

    def put_if_absent(self, data: bytes, name: str) -> bool:
        """Write a small file unless one is there; return whether it is there with this content."""
        if not self.is_local:
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                # It may be ours: a reply that is lost makes the client try again, and find its own file.
                return self.read(name) == data
            self.fs.invalidate_cache(self.path(name))
            return True
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = write_durably(target, lambda path: path.write_bytes(data))
        try:
            os.link(part, target)
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            part.unlink()
        sync_folder(target.parent)
        return True

    def local_copy(self, name: str, scratch: Path) -> Path:
        """Return a local path of a file: itself where it is local, else a copy in scratch."""
        if self.is_local:
            return Path(self.path(name))
        target = scratch / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
            # Of a large file, s3fs does not ask again for a part that breaks off.
            _twice(lambda: self.fs.get_file(self.path(name), str(part)))
            part.replace(target)
        return target

    def local_folder(self, scratch: Path) -> Path:
        """Return a local path that holds this folder's files: itself where it is local, else a copy in scratch."""
        if self.is_local:
            return Path(self.root)
        for name, _ in self.files():
            self.local_copy(name, scratch)
        return scratch

    def honours_put_if_absent(self) -> bool:
        """Find out, with a probe file, whether a second conditional put is refused; some S3 stores ignore it."""
        name = f"{PROBE}{uuid.uuid4().hex}"
        try:
            return self.put_if_absent(b"1", name) and not self.put_if_absent(b"2", name)
        finally:
            self.remove(name)


def _twice(call: Callable[[], object]) -> None:
    """Make a call once more where it fails for what may pass; done twice it must leave what it leaves when done once."""
    try:
        call()
    except PermissionError:
        raise
    except Exception:  # noqa: BLE001  (the client hands on errors of three libraries; the second call's is raised)
        call()


def _modified(info: Mapping[str, Any]) -> float:
    moment = next((info[key] for key in ("mtime", "LastModified", "created") if key in info), 0.0)
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)
