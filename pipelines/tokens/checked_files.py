"""Opens a dataset's files after a look at their size and checksum; copies remote ones first, and fetches damaged copies again."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self, TypeVar

import pyarrow as pa
import xxhash

from dualtoken.infra.digests import CHUNK_BYTES
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.tokens.shard_cache import ShardCache

T = TypeVar("T")
Check = Literal["first_touch", "never"]
_TRIES = 3


class DamagedShardError(OSError):
    """A shard is not what its dataset says; training on it would be training on other codes."""

    def __init__(self, message: str) -> None:
        """Take a message alone, as a DataLoader does that raises again what a worker process raised; see `of`."""
        super().__init__(message)
        self.url = self.name = self.problem = ""
        """The dataset's folder, the file's name in it and what is wrong with it; of another process's error only the message tells."""
        self.shard: tuple[str, int] | None = None
        """The dataset that was read, and the number of its shard; captions may be in another dataset's file."""

    @classmethod
    def of(cls, url: str, name: str, problem: str) -> Self:
        """Say what is wrong with a file of a dataset."""
        error = cls(f"{url}/{name} is damaged ({problem}): run `dualtoken verify {url} --repair`")
        error.url, error.name, error.problem = url, name, problem
        return error


class CheckedFiles:
    """The files of one dataset, as its records say they are; goes to other processes by fork or pickle."""

    def __init__(self, url: str, check: Check, cache: ShardCache | None) -> None:
        self.url, self.cache, self._is_local = url, cache, Store(url).is_local
        self.check: Check = check
        self._checked: dict[str, tuple[int, int]] = {}
        """By name, change and inode of the file that was found whole."""

    def is_at_hand(self, file: FileRecord) -> bool:
        """Tell whether a file can be opened without a look at all of it, and without a copy from afar."""
        is_here = self._is_local or (self.cache is not None and self.cache.find(file.xxh3_128) is not None)
        return is_here and (self.check == "never" or file.name in self._checked)

    def open(self, store: Store, file: FileRecord, read: Callable[[Path], T]) -> T:
        """Read a file of the dataset's folder that is as recorded; raises `DamagedShardError` where it is not, or `read` finds it cut."""
        for _ in range(_TRIES):
            try:
                return read(self._whole(store, file))
            except FileNotFoundError:
                # Another process may have let a copy go, to make room, before it was mapped here.
                if store.is_local or not store.exists(file.name):
                    raise DamagedShardError.of(self.url, file.name, "missing") from None
            except pa.ArrowException as error:
                raise DamagedShardError.of(self.url, file.name, " ".join(str(error).split())[:120]) from None
        assert self.cache is not None
        raise OSError(
            f"{self.cache.folder}: copies go before they are read: raise max_bytes={self.cache.max_bytes}"
        )

    def _whole(self, store: Store, file: FileRecord) -> Path:
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
        state = path.stat()
        if state.st_size != file.bytes:
            return f"{state.st_size} bytes, the index says {file.bytes}"
        # What was found whole before is not read again when its map was let go.
        seen = (state.st_mtime_ns, state.st_ino)
        if self.check == "first_touch" and self._checked.get(file.name) != seen:
            if (found := _xxh3(path)) != file.xxh3_128:
                return f"xxh3 {found}, the index says {file.xxh3_128}"
            self._checked[file.name] = seen
        return None


def _xxh3(path: Path) -> str:
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
