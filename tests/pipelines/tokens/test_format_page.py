"""A dataset that the stages wrote is what FORMAT.md says, field by field."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_receipts
from dualtoken.pipelines.core.tombstones import Forgotten
from dualtoken.pipelines.images.crops import CROP_FIELDS
from tests.helpers.tiny_run import TINY, tokens_job

PAGE = (Path(TINY).parents[1] / "pipelines/tokens/FORMAT.md").read_text()
SECTIONS = dict(re.findall(r"^## `?(.+?)`?\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def fields(section: str) -> dict[str, str]:
    """Return the first two columns of a section's table: name and type, names side by side taken apart."""
    return table_fields(SECTIONS[section])


def table_fields(text: str) -> dict[str, str]:
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", text, re.MULTILINE)
    kinds = {}
    for names, kind in rows:
        for name in re.findall(r"`(.+?)`", names):
            kinds[name] = kind
    return kinds


KINDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


def require_kinds(listed: dict[str, str], document: dict[str, Any]) -> None:
    for name, kinds in listed.items():
        outer, _, inner = name.rpartition(".")
        value = (document[outer] if outer else document)[inner]
        assert any(isinstance(value, KINDS[kind]) for kind in kinds.split(", ")), name


def listed_type(kind: pa.DataType, codes: int = 0) -> str:
    """Write a column's type as the page does; `codes` are those of a row."""
    if pa.types.is_map(kind):
        return f"map of {kind.key_type} to {kind.item_type}"
    if pa.types.is_fixed_size_list(kind):
        assert kind.list_size == codes
        assert not kind.value_field.nullable
        return f"fixed_size_list<{kind.value_type}>[N]"
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def require_columns(section: str, schema: pa.Schema, codes: int = 0) -> None:
    """Compare names, order, types and nullability with a section's table."""
    assert {field.name: listed_type(field.type, codes) for field in schema} == fields(section)
    assert schema.names == list(fields(section))
    assert "No nulls." in " ".join(SECTIONS[section].split())
    assert not any(field.nullable for field in schema)


@pytest.fixture(scope="module")
def folder(finished: Recipe) -> Path:
    job = tokens_job(finished)
    return Path(job.folder)


def test_the_folder_holds_what_the_page_lists(folder: Path) -> None:
    listed = set(re.findall(r"^  ([\w./<>]+) {2,}", PAGE, re.MULTILINE))
    found = {
        re.sub(r"\b\d{5}\b", "<shard>", path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == listed - {"forgotten.json"}


def test_the_manifest_has_the_listed_fields_and_no_other(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {name for name in manifest if name != "details"} | {
        f"details.{name}" for name in manifest["details"]
    }
    assert found == set(fields("manifest.json"))
    require_kinds(fields("manifest.json"), manifest)
    assert sum(manifest["counts"].values()) == manifest["rows_in"]
    assert sum(manifest["units"].values()) == manifest["details"]["rows"]


def test_the_root_hash_is_computed_as_the_page_says(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ["index.parquet", "README.md"]
    for receipt in read_receipts(Store(str(folder))).values():
        names += [file.name for file in receipt.files]
    lines = sorted(f"{name} {digest(folder / name).sha256}\n" for name in names)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == manifest["root_hash"]


def test_index_and_data_have_the_listed_columns_in_order(folder: Path) -> None:
    index = pq.read_table(folder / "index.parquet")
    require_columns("index.parquet", index.schema)
    for row in index.to_pylist():
        found = digest(folder / row["path"])
        assert (row["bytes"], row["sha256"], row["xxh3_128"]) == (found.bytes, found.sha256, found.xxh3_128)
        with pa.memory_map(str(folder / row["path"])) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
            schema = reader.schema
        require_columns("data/<shard>.arrow", schema, codes=4 * 4 * 2)
        assert sum(batches) == row["rows"]
        assert all(size == 256 for size in batches[:-1])
        listed = set(re.findall(r"`(dualtoken\.\w+)`", SECTIONS["data/<shard>.arrow"]))
        assert {name.decode() for name in schema.metadata} == listed
        meta = pq.read_table(folder / row["meta_path"])
        promised = table_fields(SECTIONS["meta/<shard>.parquet"].partition("\nWhere ")[0])
        assert {name: listed_type(meta.schema.field(name).type) for name in promised} == promised
        assert [name for name in meta.schema.names if name in promised] == list(promised)
        assert not meta["key"].null_count
        require_columns("ledger/<shard>.parquet", pq.read_schema(folder / f"ledger/{row['shard']}.parquet"))
        with pa.memory_map(str(folder / row["path"])) as source:
            assert meta["key"].to_pylist() == pa.ipc.open_file(source).read_all()["key"].to_pylist()


def test_crops_have_the_listed_columns() -> None:
    listed = table_fields(SECTIONS["meta/<shard>.parquet"].partition("\nWhere ")[2])
    assert {field.name: listed_type(field.type) for field in CROP_FIELDS} == listed
    assert not any(field.nullable for field in CROP_FIELDS)


def test_receipts_have_the_listed_fields_and_no_other(folder: Path) -> None:
    listed = fields("receipts/<shard>.json")
    del listed["facts.captions_of"]
    for path in folder.glob("receipts/*.json"):
        receipt = json.loads(path.read_text())
        assert {name for name in receipt if name != "facts"} | {
            f"facts.{name}" for name in receipt["facts"]
        } == set(listed)
        require_kinds(listed, receipt)
        parts = re.findall(
            r"`(\w+)`", next(line for line in PAGE.splitlines() if line.startswith("| `facts.seconds`"))
        )
        assert set(receipt["facts"]["seconds"]) == set(parts)


def test_the_stages_record_has_the_listed_fields_and_the_fingerprint_is_computed_as_the_page_says(
    folder: Path,
) -> None:
    stage = json.loads((folder / "stage.json").read_text())
    assert set(stage) == set(fields("stage.json"))
    require_kinds(fields("stage.json"), stage)
    assert set(stage["identity"]) == {"stage", "version", "corpus", "settings", "inputs"}
    text = json.dumps(stage["identity"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == stage["fingerprint"] == folder.name


def test_what_forgetting_leaves_has_the_listed_fields() -> None:
    left = json.loads(Forgotten(version=2, lineage=None, finished=False, pending=("00000",)).to_bytes())
    assert set(left) == set(fields("forgotten.json"))
    require_kinds(fields("forgotten.json"), left)


def test_receipts_and_manifest_hold_the_listed_figures_of_the_audit(folder: Path) -> None:
    of_shard, of_dataset = (table_fields(part) for part in SECTIONS["Audit"].split("`details.audit`"))
    for receipt in read_receipts(Store(str(folder))).values():
        assert set(receipt.facts["audit"]) == set(of_shard)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["details"]["audit"]) == set(of_dataset) - {"shard", "kind", "problem"}
