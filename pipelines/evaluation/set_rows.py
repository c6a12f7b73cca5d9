"""The samples of evaluation sets, read from where they are: scenes, shards, folders, Parquet, Arrow."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.fetch import FetchFailed
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import FolderSource
from dualtoken.pipelines.config.evaluation import AnySet, FolderSet, ParquetSet, ScenesSet, ShardsSet
from dualtoken.pipelines.core.ledger import KEY_BYTES, sample_key
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.folder_source import FolderImages
from dualtoken.pipelines.images.image_questions import read_questions
from dualtoken.pipelines.images.scene_generator import caption, describe, questions, render, scene
from dualtoken.pipelines.images.source_shards import find_shards, open_source_shard

OWN_FOLDER = "folder:"
"""Value of `label_column` by which an image's class is the name of the folder that it is in."""
_MOST_IMAGE_BYTES = 2**30
_ROWS_AT_ONCE = 256


class SetRow(NamedTuple):
    """One sample of a set."""

    name: str
    """Name for people: a file's, a member's, or a row's."""
    key: bytes
    """16 bytes; the same sample has the same key in every evaluation."""
    image: bytes
    """Encoded image, as it is stored."""
    captions: tuple[str, ...] = ()
    label: str | None = None
    cluster: str | None = None
    description: str = ""
    """JSON of a scene's contents; empty for every other image."""
    questions: str = ""
    """JSON of the questions about it; empty where it has none."""


def named_key(name: str) -> bytes:
    """Return the key of a sample that has no key of its own but a name."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=KEY_BYTES).digest()


def set_rows(name: str, config: AnySet) -> Iterator[SetRow]:
    """Yield a set's samples, in the order of its source; raises `UserError` for what cannot be read."""
    if isinstance(config, ScenesSet):
        return _scenes(config)
    if isinstance(config, ShardsSet):
        return _shards(name, config)
    if isinstance(config, FolderSet):
        return _folder(name, config)
    return _tables(name, config)


def _scenes(config: ScenesSet) -> Iterator[SetRow]:
    for index in range(config.num_images):
        drawn = scene(config.split, config.seed, index)
        stream = io.BytesIO()
        render(drawn).save(stream, "PNG", compress_level=1)
        yield SetRow(
            name=f"scene {index}",
            key=sample_key(f"scenes-{config.split}-{config.seed}", index),
            image=stream.getvalue(),
            captions=(caption(drawn),),
            description=json.dumps(describe(drawn)),
            questions=json.dumps(questions(drawn)) if config.questions else "",
        )


def _shards(name: str, config: ShardsSet) -> Iterator[SetRow]:
    keys = config.caption_key or ()
    caption_keys = (keys,) if isinstance(keys, str) else keys
    store = Store(config.folder)
    for shard in find_shards(config.folder, caption_keys):
        with (
            scratch_folder() as scratch,
            open_source_shard(store, shard, name, Path(scratch), caption_keys)[0] as images,
        ):
            table = images.metadata
            labels = _texts(table, config.label_column, f"sets.{name}.label_column")
            clusters = _texts(table, config.cluster_column, f"sets.{name}.cluster_column")
            asked = _questions(table, config.questions_column, name)
            descriptions = [""] * len(images)
            if "description" in table.column_names:
                descriptions = [text or "" for text in table["description"].to_pylist()]
            members = table["key"].to_pylist()
            has_own_keys = shard.has_table and "sample_key" in table.column_names
            for row, member in enumerate(members):
                place = f"{shard.name}/{member}"
                yield SetRow(
                    name=place,
                    key=images.keys[row] if has_own_keys else named_key(place),
                    image=images.image(row),
                    captions=tuple(filter(None, [images.captions[row]])),
                    label=labels[row],
                    cluster=clusters[row],
                    description=descriptions[row],
                    questions=asked[row],
                )


def _folder(name: str, config: FolderSet) -> Iterator[SetRow]:
    by_folder = config.label_column == OWN_FOLDER
    columns = (
        None if by_folder else config.label_column,
        config.cluster_column,
        config.questions_column,
    )
    source = FolderSource(
        kind="folder",
        folder=config.folder,
        captions=config.captions,
        file_column=config.file_column,
        caption_column=config.caption_column,
        keep_columns=tuple(column for column in columns if column),
        quotes=config.quotes,
    )
    images = FolderImages(source, f"sets.{name}.")
    for first in range(0, images.num_rows, _ROWS_AT_ONCE):
        rows = images.rows(first, min(_ROWS_AT_ONCE, images.num_rows - first))
        labels = _texts(rows, columns[0], f"sets.{name}.label_column")
        clusters = _texts(rows, config.cluster_column, f"sets.{name}.cluster_column")
        asked = _questions(rows, config.questions_column, name)
        for number, file in enumerate(rows["url"].to_pylist()):
            fetched = images.image(first + number, _MOST_IMAGE_BYTES)
            if isinstance(fetched, FetchFailed):
                raise UserError(
                    f"sets.{name}: {file or f'row {first + number}'} cannot be read ({fetched.reason}: "
                    f"{fetched.detail}): put the image there, or take the row out"
                )
            text = rows["caption"][number].as_py()
            yield SetRow(
                name=file,
                key=named_key(file),
                image=fetched.body,
                captions=(text,) if text else (),
                label=Path(file).parent.name if by_folder else labels[number],
                cluster=clusters[number],
                questions=asked[number],
            )


def _tables(name: str, config: ParquetSet) -> Iterator[SetRow]:
    suffix = ".parquet" if config.kind == "parquet" else ".arrow"
    num_files = 0
    for file in _files(config.folder, suffix):
        num_files += 1
        row = 0
        for batch in _batches(file, config.kind):
            yield from _table_rows(name, config, batch, file.name, row)
            row += batch.num_rows
    if not num_files:
        raise UserError(f"sets.{name}.folder={config.folder!r} has no {suffix} file: set it to one that has")


def _files(folder: str, suffix: str) -> Iterator[Path]:
    """Yield the files with a suffix, in order of name, each a local path as long as it is used."""
    if Path(folder).is_file():
        yield Path(folder)
        return
    store = Store(folder)
    names = sorted(file for file, _ in store.files() if file.endswith(suffix))
    for file in names:
        with scratch_folder() as scratch:
            yield store.local_copy(file, Path(scratch))


def _batches(file: Path, kind: str) -> Iterator[pa.RecordBatch]:
    try:
        if kind == "parquet":
            with pq.ParquetFile(file) as table:
                yield from table.iter_batches(_ROWS_AT_ONCE)
            return
        with _arrow(file) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged ({first_line}): fetch it again") from error


@contextmanager
def _arrow(file: Path) -> Iterator[Iterator[pa.RecordBatch]]:
    """Open Arrow's stream format, which Hugging Face's caches have, or its file format."""
    with pa.memory_map(str(file)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            whole = pa.ipc.open_file(source)
            yield (whole.get_batch(number) for number in range(whole.num_record_batches))
            return
        yield iter(reader)


def _table_rows(
    name: str, config: ParquetSet, batch: pa.RecordBatch, file: str, first: int
) -> Iterator[SetRow]:
    table = pa.Table.from_batches([batch])
    images = _column(table, config.image_column, f"sets.{name}.image_column")
    keys = _texts(table, config.key_column, f"sets.{name}.key_column")
    labels = _texts(table, config.label_column, f"sets.{name}.label_column")
    clusters = _texts(table, config.cluster_column, f"sets.{name}.cluster_column")
    asked = _questions(table, config.questions_column, name)
    captions: Sequence[Any] = [None] * table.num_rows
    if config.caption_column:
        captions = _column(table, config.caption_column, f"sets.{name}.caption_column")
    for row, image in enumerate(images):
        place = keys[row] or f"{file}:{first + row}"
        yield SetRow(
            name=place,
            key=named_key(place),
            image=_image_bytes(name, place, image),
            captions=_captions(captions[row]),
            label=labels[row],
            cluster=clusters[row],
            questions=asked[row],
        )


def _image_bytes(name: str, place: str, value: Any) -> bytes:  # noqa: ANN401
    """Return the encoded image of a row; raises `UserError` where it has none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise UserError(
            f"sets.{name}: the row {place} has no image's bytes: embed the images, or take the row out"
        )
    return value


def _captions(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    return tuple(str(text) for text in texts if text)


def _column(table: pa.Table, column: str, key: str) -> list[Any]:
    if column not in table.column_names:
        raise UserError(f"{key}={column} is no column: set it to one of {', '.join(table.column_names)}")
    return table[column].to_pylist()


def _texts(table: pa.Table, column: str | None, key: str) -> list[str | None]:
    """Return a column's values as text; all None where no column is named."""
    if column is None:
        return [None] * table.num_rows
    return [None if value is None else str(value) for value in _column(table, column, key)]


def _questions(table: pa.Table, column: str | None, name: str) -> list[str]:
    """Return each row's questions as they are stored; raises `UserError` for what are none."""
    key = f"sets.{name}.questions_column"
    texts = [text or "" for text in _texts(table, column, key)]
    for text in texts:
        try:
            read_questions(text)
        except ValueError as error:
            raise UserError(
                f"{key}={column}: {error}: give a JSON list of objects with `question` and `answer`"
            ) from None
    return texts
