"""A dataset that the stages wrote is what FORMAT.md says, field by field."""

import hashlib
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.digests import digest
from infra.storage import Store
from pipelines.config import Recipe
from pipelines.receipts import read_receipts
from tests.conftest import TINY, planned

PAGE = (Path(TINY).parents[1] / "pipelines/FORMAT.md").read_text()
SECTIONS = dict(re.findall(r"^## `?(.+?)`?\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def fields(section: str) -> dict[str, str]:
    """Return the first two columns of a section's table: name and type, names side by side taken apart."""
    return table_fields(SECTIONS[section])


def table_fields(text: str) -> dict[str, str]:
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", text, re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(.+?)`", names)}


@pytest.fixture(scope="module")
def folder(finished: Recipe) -> Path:
    job = planned(finished, "pretokenize", "tiny-train").job
    assert job is not None
    return Path(job.folder)


def test_the_folder_holds_what_the_page_lists(folder: Path) -> None:
    listed = set(re.findall(r"^  ([\w./<>]+) {2,}", PAGE, re.MULTILINE))
    found = {re.sub(r"\b\d{5}\b", "<shard>", path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}
    assert found == listed - {"forgotten.json"}


def test_the_manifest_has_the_listed_fields_and_no_other(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {name for name in manifest if name != "details"} | {f"details.{name}" for name in manifest["details"]}
    assert found == set(fields("manifest.json"))
    kinds = {"string": str, "integer": int, "object": dict, "array": list}
    for name, kind in fields("manifest.json").items():
        value = manifest["details"][name[8:]] if name.startswith("details.") else manifest[name]
        assert "," in kind or kind == "number" or isinstance(value, kinds[kind]), name
    assert sum(manifest["counts"].values()) == manifest["rows_in"]
    assert sum(manifest["units"].values()) == manifest["details"]["rows"]


def test_the_root_hash_is_computed_as_the_page_says(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [file.name for receipt in read_receipts(Store(str(folder))).values() for file in receipt.files] + ["index.parquet", "README.md"]
    lines = sorted(f"{name} {digest(folder / name).sha256}\n" for name in names)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == manifest["root_hash"]


def test_index_and_data_have_the_listed_columns_in_order(folder: Path) -> None:
    index = pq.read_table(folder / "index.parquet")
    assert index.schema.names == list(fields("index.parquet"))
    for row in index.to_pylist():
        found = digest(folder / row["path"])
        assert (row["bytes"], row["sha256"], row["xxh3_128"]) == (found.bytes, found.sha256, found.xxh3_128)
        with pa.memory_map(str(folder / row["path"])) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
            schema = reader.schema
        assert schema.names == list(fields("data/<shard>.arrow"))
        assert sum(batches) == row["rows"]
        assert all(size == 256 for size in batches[:-1])
        listed = set(re.findall(r"`(dualtoken\.\w+)`", SECTIONS["data/<shard>.arrow"]))
        assert {name.decode() for name in schema.metadata} == listed
        meta = pq.read_table(folder / row["meta_path"])
        promised = re.findall(r"`([a-z_0-9]+)`", SECTIONS["meta/<shard>.parquet"].partition("\nWhere ")[0])
        assert set(promised) <= set(meta.schema.names)
        with pa.memory_map(str(folder / row["path"])) as source:
            assert meta["key"].to_pylist() == pa.ipc.open_file(source).read_all()["key"].to_pylist()


def test_receipts_and_manifest_hold_the_listed_figures_of_the_audit(folder: Path) -> None:
    of_shard, of_dataset = (table_fields(part) for part in SECTIONS["Audit"].split("`details.audit`"))
    for receipt in read_receipts(Store(str(folder))).values():
        assert set(receipt.facts["audit"]) == set(of_shard)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["details"]["audit"]) == set(of_dataset) - {"shard", "kind", "problem"}
