"""Every door by which a name comes in from outside: none lets one through that leads out of its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from dualtoken.infra.digests import digest
from dualtoken.infra.names import UnsafeNameError
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    DamagedRecordError,
    FileRecord,
    Manifest,
    Receipt,
    StageRecord,
    receipt_name,
)
from dualtoken.pipelines.core.tombstones import Forgotten, read_tombstones
from dualtoken.pipelines.errors import ExitCode, UserError, exit_code
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.stage_folder import input_folders, stage_folders
from dualtoken.pipelines.tokens.captions import resolve_meta_path
from dualtoken.pipelines.tokens.checked_files import CheckedFiles
from dualtoken.pipelines.tokens.export import export_tokens
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.training.checkpoints import CheckpointReceipt
from tests.helpers.names import UNSAFE_NAMES
from tests.helpers.s3_servers import s3_server
from tests.helpers.token_datasets import write_tokens

FILE = FileRecord(name="x", bytes=1, sha256="0" * 64, xxh3_128="0" * 32)
STORE_DOORS: dict[str, Callable[[Store, str, Path], Any]] = {
    "path": lambda store, name, _: store.path(name),
    "at": lambda store, name, _: store.at(name),
    "beside": lambda store, name, _: store.beside(name),
    "exists": lambda store, name, _: store.exists(name),
    "entry": lambda store, name, _: store.entry(name),
    "size": lambda store, name, _: store.size(name),
    "read": lambda store, name, _: store.read(name),
    "read_many": lambda store, name, _: list(store.read_many([name])),
    "files": lambda store, name, _: list(store.files(name)),
    "entries": lambda store, name, _: list(store.entries(name)),
    "folders": lambda store, name, _: store.folders(name),
    "remove": lambda store, name, _: store.remove(name),
    "remove_empty_folders": lambda store, name, _: store.remove_empty_folders(name),
    "put": lambda store, name, scratch: store.put(scratch / "mine", name),
    "move": lambda store, name, scratch: store.put(scratch / "mine", name, move=True),
    "put_bytes": lambda store, name, _: store.put_bytes(b"theirs", name),
    "put_if_absent": lambda store, name, _: store.put_if_absent(b"theirs", name),
    "local_copy": lambda store, name, scratch: store.local_copy(name, scratch),
}
UNSAFE_KEYS = ("../../../../outside", "/outside", "./outside", "a\\..\\..\\b")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder with a file of the reader's, deep below another one."""
    folder = tmp_path / "a/b/c/scratch"
    folder.mkdir(parents=True)
    (folder / "mine").write_bytes(b"mine")
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize("door", STORE_DOORS)
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_store_touches_nothing_outside_its_folder(kind: str, door: str, name: str, scratch: Path) -> None:
    url = str(scratch.parent / "store") if kind == "local" else "memory://names/store"
    before = files_below(scratch)
    with pytest.raises(UnsafeNameError):
        STORE_DOORS[door](Store(url), name, scratch)
    assert files_below(scratch) == before


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token dataset of two shards."""
    folder = tmp_path_factory.mktemp("names") / "a/b/tokens/0"
    write_tokens(folder, 4, rows_per_shard=2)
    return folder


def records(written: Path) -> dict[str, tuple[type[Any], dict[str, Any]]]:
    """Return a record of each kind as its class and its JSON values."""
    store = Store(str(written))
    receipt = Receipt.read(store, receipt_name("00000")).model_dump(mode="json")
    manifest = Manifest.read(store, MANIFEST_FILE).model_dump(mode="json")
    stage = {"stage": "score", "corpus": "c", "fingerprint": "0", "identity": {}, "inputs": {}, "recipe": {}}
    forgotten = {"version": 1, "lineage": None, "finished": True, "pending": []}
    return {
        "receipt": (Receipt, receipt),
        "manifest": (Manifest, manifest),
        "stage": (StageRecord, stage),
        "forgotten": (Forgotten, forgotten),
    }


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("receipt", lambda name: {"unit": name}),
        ("receipt", lambda name: {"corpus": name}),
        ("receipt", lambda name: {"files": [FILE.model_dump() | {"name": name}]}),
        ("receipt", lambda name: {"files": [FILE.model_dump() | {"xxh3_128": name}]}),
        ("manifest", lambda name: {"files": [FILE.model_dump() | {"name": name}]}),
        ("manifest", lambda name: {"units": {name: 1}}),
        ("stage", lambda name: {"corpus": name}),
        ("stage", lambda name: {"inputs": {f"{name}": "/root/fingerprint"}}),
        ("forgotten", lambda name: {"pending": [name]}),
    ],
)
def test_a_record_with_a_name_that_leads_elsewhere_is_not_read(
    written: Path, kind: str, change: Callable[[str], dict[str, Any]], name: str
) -> None:
    record, values = records(written)[kind]
    store = Store("memory://names/records")
    store.put_bytes(record.model_validate(values).to_bytes(), "record.json")
    assert record.read(store, "record.json")
    changed = record.model_construct(**(values | change(name)))
    store.put_bytes(changed.model_dump_json(warnings=False).encode(), "record.json")
    with pytest.raises(DamagedRecordError, match=r"records/record\.json is not as it was written"):
        record.read(store, "record.json")


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_the_inputs_of_a_stages_folder_lie_below_its_own_root(name: str) -> None:
    record = StageRecord(
        stage="score", corpus="c", fingerprint="0", identity={}, inputs={"teacher": f"/x/{name}"}, recipe={}
    )
    try:
        folders = input_folders(Store("/root/c/scores/0"), record)
    except UnsafeNameError:
        return
    assert folders["teacher"].startswith("/root/models/teacher/")
    assert ".." not in folders["teacher"]


def hostile_copy(written: Path, url: str, column: str, value: str) -> Store:
    """Copy a dataset, and let the first row of its index say something else; the manifest agrees with it."""
    store = Store(url)
    for name, _ in Store(str(written)).files():
        store.put(written / name, name)
    index = pq.read_table(written / "index.parquet")
    values = [value, *index[column].to_pylist()[1:]]
    place = index.column_names.index(column)
    field = index.schema.field(column)
    changed = index.set_column(place, field, pa.array(values, field.type))
    file = written.parents[3] / "index.parquet"
    pq.write_table(changed, file)
    store.put(file, "index.parquet")
    found = digest(file)
    manifest = Manifest.read(Store(str(written)), MANIFEST_FILE)
    record = FileRecord(name="index.parquet", bytes=found.bytes, sha256=found.sha256, xxh3_128=found.xxh3_128)
    store.put_bytes(manifest.model_copy(update={"files": (record,)}).to_bytes(), MANIFEST_FILE)
    return store


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize("column", ["shard", "path", "meta_path", "xxh3_128"])
def test_an_index_that_leads_out_of_its_dataset_is_refused_when_it_is_opened(
    written: Path, column: str, name: str
) -> None:
    store = hostile_copy(written, "memory://names/index", column, name)
    with pytest.raises(UnsafeNameError, match=rf"index/index\.parquet has .* as {column}") as error:
        TokenDataset(store.url)
    assert exit_code(error.value) == ExitCode.CONFIGURATION


def test_a_reader_keeps_the_file_that_a_dataset_on_a_store_points_to(written: Path, scratch: Path) -> None:
    cache = ShardCache(scratch / "cache", 10**6)
    name = "../" * 30 + str(scratch / "mine").lstrip("/")
    store = hostile_copy(written, "memory://names/attack", "path", name)
    with pytest.raises(UnsafeNameError):
        TokenDataset(store.url, cache=cache).read(np.arange(4))
    with pytest.raises(UserError, match="as path"):
        export_tokens(store.url, "parquet", str(scratch / "out"))
    files = CheckedFiles(store.url, "never", cache)
    with pytest.raises(UnsafeNameError):
        files.open(store, FILE.model_copy(update={"name": name}), Path.read_bytes)
    assert (scratch / "mine").read_bytes() == b"mine"


def test_a_cache_takes_only_what_was_made_in_its_own_folder(scratch: Path) -> None:
    cache = ShardCache(scratch / "cache", 10**6)
    with pytest.raises(AssertionError, match="was not made in"):
        cache.get("00" * 16, lambda _: scratch / "mine")
    with pytest.raises(AssertionError, match="was not made in"):
        cache.get("00" * 16, lambda folder: folder / "../../../mine")
    assert (scratch / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_cache_names_no_copy_but_by_a_checksum(scratch: Path, name: str) -> None:
    cache = ShardCache(scratch / "cache", 10**6)
    with pytest.raises(UnsafeNameError):
        cache.get(name, lambda folder: folder / "x")
    with pytest.raises(UnsafeNameError):
        cache.find(name)


@pytest.mark.parametrize("name", ["../..", "../", "../../b/x", "../a/../x", "..//x", *UNSAFE_NAMES])
def test_captions_are_in_the_dataset_or_in_one_beside_it(name: str) -> None:
    store = Store("memory://names/tokens/0")
    with pytest.raises(UnsafeNameError):
        resolve_meta_path(store, name)


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_tombstones_are_those_of_a_corpus_below_the_root(name: str) -> None:
    if name.strip("/") not in {"", "etc/passwd", "host/share", "a"}:  # without outer slashes these are names
        with pytest.raises(UnsafeNameError):
            read_tombstones(Store("memory://names"), name)


def test_verify_calls_a_receipt_of_files_elsewhere_unreadable_and_reads_none(written: Path) -> None:
    store = Store("memory://names/verified")
    for name, _ in Store(str(written)).files():
        store.put(written / name, name)
    stage = StageRecord(stage="pretokenize", corpus="a", fingerprint="0", identity={}, inputs={}, recipe={})
    store.put_bytes(stage.to_bytes(), "stage.json")
    receipt = Receipt.read(store, receipt_name("00000"))
    files = (FILE.model_copy(update={"name": "../../mine"}),)
    store.put_bytes(receipt.model_copy(update={"files": files}).to_bytes(), receipt_name("00000"))
    (checked,) = verify(store.url)
    names = {finding.name: str(finding.problem) for finding in checked.findings}
    assert "unreadable" in names[receipt_name("00000")]
    assert "../../mine" not in names


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with s3_server("moto", tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_a_key_of_a_bucket_writes_no_file_outside_the_folder_that_it_is_copied_to(
    bucket: str, scratch: Path, key: str
) -> None:
    folder = f"evil{UNSAFE_KEYS.index(key)}"
    s3fs.S3FileSystem().call_s3("put_object", Bucket="test", Key=f"{folder}/{key}", Body=b"theirs")
    store = Store(f"{bucket}/{folder}")
    before = files_below(scratch.parents[2])
    with pytest.raises(UnsafeNameError):
        store.local_folder(scratch / "model")
    with pytest.raises(UnsafeNameError):
        list(store.files())
    assert files_below(scratch.parents[2]) == before


def test_the_stages_below_a_root_are_looked_for_by_safe_names_alone() -> None:
    with pytest.raises(UnsafeNameError):
        list(stage_folders(Store("memory://names"), "../x"))


def test_a_checkpoint_s_receipt_names_its_own_files_alone() -> None:
    file = {"name": "state.pt", "bytes": 1, "sha256": "0" * 64, "xxh3_128": "0" * 32}
    assert CheckpointReceipt.model_validate({"step": 1, "files": [file]}).step == 1
    for name in UNSAFE_NAMES:
        with pytest.raises(ValueError, match="name"):
            CheckpointReceipt.model_validate({"step": 1, "files": [file | {"name": name}]})
