"""Opens a dataset's files once their size and checksum were checked.

Remote files are copied first, and a damaged copy is fetched again.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pyarrow as pa
import xxhash

from dualtoken.infra.digests import CHUNK_BYTES
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.core.threads import THREADS
from dualtoken.pipelines.tokens.shard_cache import ShardCache

T = TypeVar("T")
Check = Literal["first_touch", "never"]
"""Policy for comparing a file's checksum with its record; the size is always compared."""
_TRIES = 3


class DamagedShardError(OSError):
    """A shard is not what its dataset says; training on it would be training on other codes."""

    def __init__(self, message: str) -> None:
        """Take a message alone, as a DataLoader does that raises a worker process's error again; see `of`."""
        super().__init__(message)
        self.url = ""
        """Folder of the dataset that the file is in; as `name` and `problem` empty in an error of another
        process."""
        self.name = ""
        """Name of the file in that folder."""
        self.problem = ""
        """Description of the damage."""
        self.shard: tuple[str, int] | None = None
        """Dataset that was read, and the number of its shard; captions may be in another dataset's file."""

    @classmethod
    def of(cls, url: str, name: str, problem: str) -> Self:
        """Say what is wrong with a file of a dataset."""
        error = cls(f"{url}/{name} is damaged ({problem}): run `dualtoken verify {url} --repair`")
        error.url = url
        error.name = name
        error.problem = problem
        return error


class CheckedFiles:
    """The files of one dataset, as its records say they are; goes to other processes by fork or pickle."""

    def __init__(self, url: str, check: Check, cache: ShardCache | None) -> None:
        self.url = url
        self.cache = cache
        self.check: Check = check
        self.is_local = Store(url).is_local
        self._checked: dict[str, tuple[int, int]] = {}
        """Time of last change and inode of each file that was found whole, by name."""
        self._stores: dict[int, Store] = {}
        """The open folder by process, which may be a fork of the one that opened it first."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stores": {}}

    def store(self) -> Store:
        """Return the folder for all threads of this process.

        A thread that opens it anew waits for fsspec to make it a client of its own.
        """
        process = os.getpid()
        if process not in self._stores:
            self._stores = {process: Store(self.url)}
        return self._stores[process]

    def of_dataset(self, url: str) -> "CheckedFiles":
        """Return the files of another dataset, checked in the same way."""
        return CheckedFiles(url, self.check, self.cache)

    def num_threads(self, largest: int) -> int:
        """Return how many files of up to `largest` bytes to open side by side.

        Copies under way take a quarter of the cache at most, or they would push out one another.
        """
        if self.cache is None:
            return THREADS
        copies = self.cache.max_bytes // (4 * largest)
        return max(1, min(THREADS, copies))

    def is_ready(self, file: FileRecord) -> bool:
        """Tell whether a file can be opened without a look at all of it, and without a copy from afar."""
        if not self.is_local:
            copy = None if self.cache is None else self.cache.find(file.xxh3_128)
            if copy is None:
                return False
        return self.check == "never" or file.name in self._checked

    def open(self, store: Store, file: FileRecord, read: Callable[[Path], T]) -> T:
        """Read a file of the dataset's folder, which is open as `store`, once it is found to be as recorded.

        Raises `DamagedShardError` where it is not, or where `read` finds it cut.
        """
        for _ in range(_TRIES):
            try:
                return read(self._whole_file(store, file))
            except FileNotFoundError:
                # Another process may have evicted a copy, to make room, before it was mapped here.
                if store.is_local or not store.exists(file.name):
                    raise DamagedShardError.of(self.url, file.name, "missing") from None
            except pa.ArrowException as error:
                if is_machine_trouble(error):
                    raise
                problem = " ".join(str(error).split())[:120]
                raise DamagedShardError.of(self.url, file.name, problem) from None
        assert self.cache is not None
        raise OSError(
            f"{self.cache.folder}: copies go before they are read: raise max_bytes={self.cache.max_bytes}"
        )

    def _whole_file(self, store: Store, file: FileRecord) -> Path:
        """Return the path of a file, or of its copy, that is as recorded; raises `DamagedShardError`."""
        path = Path(store.path(file.name)) if store.is_local else self._copy(store, file)
        problem = self._problem(path, file)
        if problem and not store.is_local:
            path = self._copy(store, file, again=True)
            problem = self._problem(path, file)
        if problem:
            raise DamagedShardError.of(self.url, file.name, problem)
        return path

    def _copy(self, store: Store, file: FileRecord, *, again: bool = False) -> Path:
        if self.cache is None:
            raise ValueError(f"{self.url} is remote: give a cache folder to copy its shards into")
        return self.cache.get(
            file.xxh3_128, lambda scratch: store.local_copy(file.name, scratch), again=again
        )

    def _problem(self, path: Path, file: FileRecord) -> str | None:
        """Return how a file differs from its record, or None."""
        state = path.stat()
        if state.st_size != file.bytes:
            return f"{state.st_size} bytes, the index says {file.bytes}"
        # A file that was found whole is not read again when its map was closed, unless it was changed since.
        version = (state.st_mtime_ns, state.st_ino)
        if self.check == "never" or self._checked.get(file.name) == version:
            return None
        checksum = _xxh3(path)
        if checksum != file.xxh3_128:
            return f"xxh3 {checksum}, the index says {file.xxh3_128}"
        self._checked[file.name] = version
        return None


def _xxh3(path: Path) -> str:
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return checksum.hexdigest()
            checksum.update(chunk)
