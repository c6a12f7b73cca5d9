"""A store of files: a local folder or any fsspec URL, with the few operations that commits are made of.

No rename is assumed. A file is written to local scratch, closed, hashed and uploaded, and its size is read
back. A small marker is then put only if absent (by a link locally, `If-None-Match: *` on S3).
"""

import copy
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dualtoken.infra.local_files import (
    PART,
    link_or_move,
    list_files,
    move_or_copy,
    replace_file,
    sync_folder,
    write_durably,
)
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.names import relative_name, single_name
from dualtoken.infra.store_refusals import naming_refusals

PROBE = ".probe-"
"""Prefix of the files that find out whether a store honours conditional puts."""
READ_AT_ONCE = 1024
"""Small files that a remote store is asked for at once; the client bounds its own connections."""


class StoredFile(NamedTuple):
    """A file as a listing shows it."""

    name: str
    bytes: int
    modified: float
    """Time of the last change, seconds since 1970, by the store's own clock."""
    tag: str = ""
    """The store's own mark of the content, such as an ETag; empty where it has none, as local folders."""

    @property
    def is_leftover(self) -> bool:
        """Whether the file is what a killed write left behind."""
        base = self.name.rpartition("/")[2]
        return base.startswith(".") and (base.endswith(PART) or base.startswith(PROBE))


def join(folder: str, *names: str) -> str:
    """Join a folder (path or URL) and names with slashes."""
    stripped_names = [name.strip("/") for name in names]
    return "/".join([folder.rstrip("/"), *stripped_names])


class Store:
    """One folder of a file system; names are relative to it, with slashes.

    Every name is checked (`infra.names`), so that none leads out of the folder, whoever gave it. Where a
    remote store refuses what is asked, every method raises `StoreRefusal`.
    """

    def __init__(self, url: str) -> None:
        self.fs: Any
        # Others write here too, so a listing is good for one look.
        self.fs, self.root = fsspec.url_to_fs(url, use_listings_cache=False)
        self.root = _with_single_slashes(self.root)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.url = self.root
        if not self.is_local:
            self.url = self.fs.unstrip_protocol(self.root)
        self._is_s3 = hasattr(self.fs, "call_s3")
        self._small_file_options: dict[str, Any] = {}
        if self._is_s3:
            # With more than one connection for a file, s3fs would ask for its size first.
            self._small_file_options["max_concurrency"] = 1

    def path(self, name: str = "") -> str:
        """Return a name's path as the file system spells it; the root's for an empty name.

        Raises `UnsafeNameError` for a name that leads out of the folder.
        """
        if not name:
            return self.root
        return f"{self.root}/{relative_name(name, self.url)}"

    def at(self, name: str) -> "Store":
        """Return a folder below this one; raises `UnsafeNameError` as `path` does."""
        return Store(join(self.url, relative_name(name, self.url)))

    def beside(self, name: str) -> "Store":
        """Return a folder beside this one, with the same client; `name` is of one part."""
        name = single_name(name)
        other = copy.copy(self)
        other.root = f"{_parent(self.root)}/{name}"
        other.url = f"{_parent(self.url)}/{name}"
        return other

    def exists(self, name: str) -> bool:
        """Tell whether a file is there; raises the error of a store that does not answer."""
        return self.size(name) is not None

    def entry(self, name: str) -> StoredFile | None:
        """Return a file as a listing would show it now, its time to the second; None where there is none."""
        try:
            with self._asking(name):
                info = self.fs.info(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if info["type"] != "file":
            return None
        return StoredFile(name, int(info["size"]), _modified(info), _tag(info))

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is no such file."""
        file = self.entry(name)
        if file is None:
            return None
        return file.bytes

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        if self.is_local:
            with open(self.path(name), "rb") as file:  # noqa: PTH123  (a path per file would double the time)
                return file.read()
        with self._asking(name):
            return bytes(self.fs.cat_file(self.path(name), **self._small_file_options))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading, at any places, while the block runs."""
        with self._asking(name), self.fs.open(self.path(name), "rb") as file:
            yield file

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of small files in their order; a remote store is asked for many at a time."""
        if self.is_local:
            for name in names:
                yield name, self.read(name)
            return
        remaining = iter(names)
        batch = list(islice(remaining, READ_AT_ONCE))
        while batch:
            with self._asking(batch[0]):
                contents = self.fs.cat([self.path(name) for name in batch], **self._small_file_options)
            for name in batch:
                yield name, bytes(contents[self.path(name)])
            batch = list(islice(remaining, READ_AT_ONCE))

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, bytes) of every file below a folder, in order of name.

        Leaves out what killed writes left behind.
        """
        for file in self.entries(folder):
            if not file.is_leftover:
                yield file.name, file.bytes

    def entries(self, folder: str = "") -> Iterator[StoredFile]:
        """Yield every file below a folder, in order of name, with its time; what killed writes left too.

        Keeps one local folder's names in memory, or one page of an S3 listing, however many files there are.
        """
        start = self.path(folder)
        if self.is_local:
            files = self._list_local(start)
        elif self._is_s3:
            files = self._list_s3(start)
        else:
            files = self._list_remote(start)
        for path, size, modified, tag in files:
            name = path.removeprefix(self.root).removeprefix("/")
            if not self.is_local:  # a folder of this machine lists nothing that is outside
                relative_name(name, self.url)
            yield StoredFile(name, size, modified, tag)

    def _list_local(self, start: str) -> Iterator[tuple[str, int, float, str]]:
        for path, size, modified in list_files(start):
            yield path, size, modified, ""

    def _list_s3(self, start: str) -> Iterator[tuple[str, int, float, str]]:
        """List by pages of up to 1,000 keys; s3fs itself would keep all of them, with a kilobyte for each."""
        bucket, key, _ = self.fs.split_path(start)
        prefix = ""
        if key:
            prefix = f"{key}/"
        request = {"Bucket": bucket, "Prefix": prefix, **self.fs.req_kw}
        while True:
            try:
                with naming_refusals(self.fs, start):
                    page = self.fs.call_s3("list_objects_v2", **request)
            except FileNotFoundError:
                return
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    path = f"{bucket}/{entry['Key']}"
                    yield path, int(entry["Size"]), entry["LastModified"].timestamp(), _tag(entry)
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _list_remote(self, start: str) -> Iterator[tuple[str, int, float, str]]:
        try:
            with naming_refusals(self.fs, start):
                files = self.fs.find(start, detail=True)
        except FileNotFoundError:
            return
        for path, info in sorted(files.items()):
            yield path, int(info["size"]), _modified(info), _tag(info)

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders right below a folder, in order."""
        try:
            with self._asking(folder):
                entries = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = [str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory"]
        return sorted(path.removeprefix(self.root).lstrip("/") for path in paths)

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        try:
            with self._asking(name):
                self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def remove_empty_folders(self, top: str) -> None:
        """Delete the folders at and below `top` that hold nothing; object stores have none."""
        path = self.path(top)
        if not self.is_local:
            return
        for folder, _, _ in os.walk(path, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()

    def put(self, source: Path, name: str, *, move: bool = False) -> None:
        """Copy a closed local file here, replacing any, and read its size back.

        With `move` the source may be gone then. Raises `OSError` when what arrived has another size.
        """
        target = self.path(name)
        expected = source.stat().st_size
        if self.is_local and move:
            replace_file(target, lambda part: move_or_copy(source, part))
        elif self.is_local:
            replace_file(target, lambda part: shutil.copyfile(source, part))
        else:
            # Where a large upload's last reply is lost, s3fs asks again, and takes an upload that has ended
            # for one that is not there.
            with self._asking(name):
                _try_twice(lambda: self.fs.put_file(str(source), target))
            self.fs.invalidate_cache(target)
        arrived = self.size(name)
        if arrived != expected:
            raise OSError(f"{target}: {arrived} bytes arrived of {expected}; try again")

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write a small file, replacing any."""
        if self.is_local:
            replace_file(self.path(name), lambda part: part.write_bytes(data))
        else:
            with self._asking(name):
                self.fs.pipe_file(self.path(name), data)
            self.fs.invalidate_cache(self.path(name))

    def put_if_absent(self, data: bytes, name: str) -> bool:
        """Write a small file unless one is there; return whether it is there with this content."""
        if self.is_local:
            return self._link_if_absent(data, name)
        try:
            with self._asking(name):
                self.fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            # It may be ours: a reply that is lost makes the client try again, and find its own file.
            return self.read(name) == data
        self.fs.invalidate_cache(self.path(name))
        return True

    def _link_if_absent(self, data: bytes, name: str) -> bool:
        """Do likewise in a local folder, where a file takes its name at once and whole."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = write_durably(target, lambda path: path.write_bytes(data))
        try:
            link_or_move(part, target)
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            part.unlink(missing_ok=True)
        sync_folder(target.parent)
        return True

    def local_copy(self, name: str, scratch: Path) -> Path:
        """Return a local path of a file: itself where it is local, else a copy in scratch."""
        path = self.path(name)  # checked first: a name that leads out of scratch may be there already
        if self.is_local:
            return Path(path)
        target = scratch / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
            # s3fs does not ask again for a part of a large file that breaks off.
            with self._asking(name):
                _try_twice(lambda: self.fs.get_file(path, str(part)))
            part.replace(target)
        return target

    def local_folder(self, scratch: Path) -> Path:
        """Return a local path with this folder's files: itself where it is local, else a copy in scratch."""
        if self.is_local:
            return Path(self.root)
        for name, _ in self.files():
            self.local_copy(name, scratch)
        return scratch

    def honours_put_if_absent(self) -> bool:
        """Find out by a probe file whether a second conditional put is refused; some S3 stores accept it."""
        name = f"{PROBE}{uuid.uuid4().hex}"
        try:
            return self.put_if_absent(b"1", name) and not self.put_if_absent(b"2", name)
        finally:
            self.remove(name)

    def _asking(self, name: str) -> AbstractContextManager[None]:
        """Name what a remote store refuses; errors of local files name their path themselves."""
        if self.is_local:
            return nullcontext()
        return naming_refusals(self.fs, self.path(name))


def _with_single_slashes(root: str) -> str:
    """Leave out slashes that only repeat another one, or end the root; addresses stay as they are."""
    if "://" in root:
        return root.rstrip("/")
    return re.sub("/{2,}", "/", root).rstrip("/")


def _parent(location: str) -> str:
    return location.rsplit("/", 1)[0]


def _try_twice(call: Callable[[], object]) -> None:
    """Make a call once more where it fails for what may pass; the call must be idempotent."""
    try:
        call()
    except PermissionError:
        raise
    except Exception as error:  # errors of three libraries; the second call's is raised
        if is_machine_trouble(error):
            raise
        call()


def _modified(info: Mapping[str, Any]) -> float:
    """Return a file's time, seconds since 1970, by whichever key its file system has; 0 without any."""
    for key in ("mtime", "LastModified", "created"):
        if key in info:
            return _timestamp(info[key])
    return 0.0


def _tag(info: Mapping[str, Any]) -> str:
    """Return a file's mark of its content, by whichever key its file system has; empty without any."""
    for key in ("ETag", "etag", "md5Hash", "Content-MD5", "Digest"):
        if info.get(key):
            return str(info[key])
    return ""


def _timestamp(moment: Any) -> float:  # noqa: ANN401  (each file system has its own type)
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment)
