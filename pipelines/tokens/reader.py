"""Reads a finished token dataset: any rows, in any order, out of checked and memory-mapped shards.

B rows, H by W positions, D depths. A file is checked when its first row is asked for; a damaged one is never
read. Remote files are copied into a bounded folder first.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.infra.storage import Store
from dualtoken.pipelines.tokens.checked_files import Check, CheckedFiles
from dualtoken.pipelines.tokens.data_shards import DataShards
from dualtoken.pipelines.tokens.dataset_captions import DatasetCaptions
from dualtoken.pipelines.tokens.dataset_index import DatasetIndex
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.mapped_shards import Rows, Words, copy_rows
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shards import Ids, require_finished


class TokenRows(NamedTuple):
    """Some rows of a dataset, in the order asked for."""

    keys: np.ndarray[Any, np.dtype[np.uint8]]
    """Keys of the samples, (B, 16)."""
    semantic: Ids | None
    """Codes, (B, H, W, D); None where the stream was not asked for."""
    pixel: Ids | None

    def select(self, which: np.ndarray[Any, np.dtype[np.bool_]]) -> "TokenRows":
        """Return copies of some of them."""
        semantic = None if self.semantic is None else self.semantic[which]
        pixel = None if self.pixel is None else self.pixel[which]
        return TokenRows(self.keys[which], semantic, pixel)


class TokenDataset:
    """Random access to a token dataset's rows; goes to other processes by fork or pickle."""

    def __init__(
        self,
        url: str,
        *,
        streams: Sequence[str] = STREAMS,
        check: Check = "first_touch",
        cache: ShardCache | None = None,
    ) -> None:
        """Open the dataset at a folder or URL.

        Of streams that `streams` does not name, nothing but the checksum is read.
        Remote shards are copied into `cache`, and captions, those of a local dataset too if there is one.
        Raises ValueError where it is unfinished, of a newer schema, has another index than it was finished
        with, or `streams` names none of its own.
        """
        store = Store(url)
        manifest = require_finished(store)
        details = TokenDetails.of(manifest)
        for stream in streams:
            if stream not in STREAMS:
                raise ValueError(f"streams has {stream!r}: use some of {', '.join(STREAMS)}")
        self.url = store.url
        self.streams = tuple(streams)
        self.tokenizer_fingerprint = details.tokenizer.fingerprint
        self.tokenizer_sha256 = details.tokenizer.sha256
        self.fingerprint = manifest.root_hash
        """Hash of the dataset's content."""
        self.shape: tuple[int, int, int] = (*details.grid, details.depth)
        """Shape of a row's codes, (H, W, D)."""
        self.num_codes: dict[str, int] = dict(details.num_codes)
        """Size of the codebook, by stream."""
        self._index = DatasetIndex(store, manifest)
        files = CheckedFiles(self.url, check, cache)
        self._data = DataShards(
            files,
            self._index,
            streams=self.streams,
            codes_per_row=math.prod(self.shape),
            tokenizer_sha256=self.tokenizer_sha256,
        )
        self._captions = DatasetCaptions(files, self._index, self.fingerprint)

    def __len__(self) -> int:
        return self._index.num_rows

    def require_tokenizer(self, tokenizer: str) -> None:
        """Raise ValueError unless the tokens were made by this tokenizer.

        `tokenizer` is the fingerprint of its training run, or the SHA-256 of its weights.
        """
        made_by = self.tokenizer_fingerprint
        if len(tokenizer) == len(self.tokenizer_sha256):
            made_by = self.tokenizer_sha256
        if tokenizer != made_by:
            raise ValueError(
                f"{self.url} has tokens of tokenizer {made_by}, the model reads those of {tokenizer}: "
                "pretokenize the corpus with the model's tokenizer, or name the other tokenizer's model"
            )

    def read(self, rows: Rows) -> TokenRows:
        """Return rows, 0 the first; raises `DamagedShardError` where a shard is not as committed."""
        columns: dict[str, Words] = {}
        for name, addresses in self.addresses(rows).items():
            columns[name] = np.empty((len(rows), self.width(name)), np.uint16)
            copy_rows(addresses, columns[name])
        return self.shaped(columns)

    def metadata(self) -> dict[str, str]:
        """Return the schema's metadata of the shard with the first row; raises as `read`."""
        return self._data.metadata(0)

    def addresses(self, rows: Rows) -> dict[str, Rows]:
        """Return by column where rows lie in memory, valid until the next call; raises as `read`."""
        return self._data.addresses(rows, ("key", *self.streams))

    def lend(self, row: int, name: str, addresses: Rows) -> Words | None:
        """Return rows of a column as they lie in a shard, writable; None where they must be copied.

        `row` is the first, and `addresses` are those that `addresses` just gave. See `lent_rows`.
        """
        return self._data.lend(row, name, addresses)

    def width(self, name: str) -> int:
        """Return the 16-bit words of a row of a column."""
        return self._data.width(name)

    def shaped(self, columns: Mapping[str, Words]) -> TokenRows:
        """Return columns of words, (B, words of a row) each, as rows."""
        codes: dict[str, Ids | None] = dict.fromkeys(STREAMS)
        for stream in self.streams:
            codes[stream] = columns[stream].reshape(-1, *self.shape)
        return TokenRows(columns["key"].view(np.uint8), codes["semantic"], codes["pixel"])

    def captions(self, rows: Rows) -> list[str]:
        """Return the captions of rows, empty where there is none; raises as `read`."""
        return self._captions.read(rows)

    def texts(self, rows: Rows, column: str) -> list[str]:
        """Return the texts of rows in another column that was carried along, empty where there is none.

        Raises as `read`, and `UserError` where there is no such column of text.
        """
        return self._captions.read(rows, column)

    def require_text(self, column: str, number: int = 0) -> None:
        """Raise `UserError` unless a shard has a text of that name, as for `texts`; raises as `read`."""
        self._captions.require_text(column, number)

    def text_columns(self) -> tuple[str, ...]:
        """Return the columns of text of the first shard, which `texts` can read; raises as `read`."""
        return self._captions.text_columns(0)

    def read_meta(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the captions' table of a shard, which may be another dataset's; raises as `read`."""
        return self._captions.table(number, columns)

    def shards(self) -> list[tuple[str, int]]:
        """Return the shards' names and rows, in the order of the rows."""
        return self._index.names_and_rows()

    def bounds(self) -> Rows:
        """Return where each shard's rows begin, and the end."""
        return self._index.bounds()

    def shards_of(self, rows: Rows) -> Rows:
        """Return the number of each row's shard."""
        return self._index.shards_of(rows)

    def shard_name(self, number: int) -> tuple[str, int]:
        """Return a shard's name and number of rows."""
        entry = self._index.entry(number)
        return entry.shard, entry.rows

    def shard_number(self, name: str) -> int:
        """Return the number of the shard with a name, -1 where there is none."""
        return self._index.number_of(name)
