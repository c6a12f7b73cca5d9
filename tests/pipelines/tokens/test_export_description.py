"""An export says itself how to read it, in `export.json`, README.md and what each format's library shows."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.tokens.export import export_tokens
from dualtoken.pipelines.tokens.export_catalogue import FORMATS
from tests.helpers.tiny_run import PROJECT
from tests.helpers.token_datasets import (
    GRID,
    NUM_CODES,
    PREPROCESSING,
    TOKENIZER,
    codes_of_rows,
    key_of,
    write_tokens,
)

ROWS = 12
DEPTH = 3
"""Codes per position: unlike the grid's sides, so that no axis is taken for another."""
WIDTH = GRID * GRID * DEPTH
IMAGE_SIZE = 16


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that, as those of a run, has the recipe that it was made with."""
    folder = write_tokens(tmp_path_factory.mktemp("tokens") / "a", ROWS, rows_per_shard=5, depth=DEPTH)
    stage = StageRecord(
        stage="pretokenize",
        corpus="a",
        fingerprint="0" * 12,
        identity={},
        inputs={},
        recipe={"tokenizer": {"image_size": IMAGE_SIZE}},
    )
    Store(folder).put_bytes(stage.to_bytes(), STAGE_FILE)
    return folder


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_says_its_shape_order_key_transform_size_and_tokenizer(
    kind: str, tokens: str, tmp_path: Path
) -> None:
    export_tokens(tokens, kind, str(tmp_path))
    said = described(tmp_path)
    assert said["image_size"] == IMAGE_SIZE
    assert said["preprocessing"] == PREPROCESSING
    assert (said["grid"], said["depth"]) == ([GRID, GRID], DEPTH)
    assert said["codes"] == {"semantic": NUM_CODES, "pixel": NUM_CODES}
    assert said["order"].startswith("position-major, depth-minor")
    assert said["key"] == "32 hexadecimal digits in lower case"
    assert said["tokenizer"] == TOKENIZER._asdict()
    assert said["rows"] == ROWS
    assert set(said["places"]) == {"key", "caption", "meta", "semantic", "pixel"}
    page = (tmp_path / "README.md").read_text()
    facts = [said["order"], said["key"], PREPROCESSING, f"{IMAGE_SIZE} x {IMAGE_SIZE} pixels"]
    facts += [TOKENIZER.fingerprint, TOKENIZER.sha256, f"{GRID} x {GRID} x {DEPTH}", *said["places"].values()]
    assert [fact for fact in facts if fact not in page] == []
    assert "README.md" in [file["name"] for file in said["files"]]


def test_the_libraries_show_the_same_description(tokens: str, tmp_path: Path) -> None:
    for kind in ("parquet", "megatron", "hf"):
        export_tokens(tokens, kind, str(tmp_path / kind))
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert isinstance(loaded, datasets.Dataset)
    shown = {
        "parquet": pq.read_schema(tmp_path / "parquet/00000.parquet").metadata[b"dualtoken"],
        "megatron": pq.read_schema(tmp_path / "megatron/tokens.parquet").metadata[b"dualtoken"],
        "hf": loaded.info.description,
    }
    for kind, text in shown.items():
        said = described(tmp_path / kind)
        del said["files"]
        assert json.loads(text) == said


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_flat_codes_take_the_shape_that_the_description_names(kind: str, tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, kind, str(tmp_path))
    layout = described(tmp_path)["layout"]
    if kind == "parquet":
        flat = pq.read_table(tmp_path / "00001.parquet")["pixel"][1].as_py()
    else:
        flat = datasets.load_from_disk(str(tmp_path))[6]["pixel"]
    codes = np.array(flat, layout["dtype"]).reshape(layout["reshape_to"])
    assert np.array_equal(codes, codes_of_rows(6, 1, WIDTH, 5).reshape(GRID, GRID, DEPTH))


@pytest.mark.parametrize(("streams", "first_id"), [(("semantic", "pixel"), 70_000), (("pixel",), 9)])
def test_megatron_files_are_read_by_their_description_alone(
    tokens: str, tmp_path: Path, streams: tuple[str, ...], first_id: int
) -> None:
    export_tokens(tokens, "megatron", str(tmp_path), streams=streams, first_id=first_id)
    said = described(tmp_path)
    layout = said["layout"]
    ids = np.fromfile(tmp_path / "tokens.bin", layout["dtype"]).reshape(-1, layout["sequence_length"])
    assert len(ids) == said["rows"] == ROWS
    assert list(layout["streams"]) == list(streams)
    expected = {"semantic": codes_of_rows(0, ROWS, WIDTH, 0), "pixel": codes_of_rows(0, ROWS, WIDTH, 5)}
    for stream, facts in layout["streams"].items():
        begin, end = facts["positions"]
        assert np.array_equal(ids[:, begin:end].astype(int) - facts["first_id"], expected[stream])
        assert facts["end_id"] - facts["first_id"] == said["codes"][stream]
    assert layout["vocabulary_size"] == first_id + NUM_CODES * len(streams)
    assert (tmp_path / "tokens.idx").read_bytes()[17] == layout["dtype_code"]


def test_keys_have_one_form_in_every_format(tokens: str, tmp_path: Path) -> None:
    for kind in FORMATS:
        export_tokens(tokens, kind, str(tmp_path / kind))
    keys = [key_of("a", row).hex() for row in range(ROWS)]
    assert pq.read_table(tmp_path / "megatron/tokens.parquet")["key"].to_pylist() == keys
    assert pq.read_table(sorted((tmp_path / "parquet").glob("*.parquet")))["key"].to_pylist() == keys
    assert datasets.load_from_disk(str(tmp_path / "hf"))["key"][:] == keys
    tars = b"".join(path.read_bytes() for path in sorted((tmp_path / "webdataset").glob("*.tar")))
    assert re.findall(rb'"key": "([0-9a-f]{32})"', tars) == [key.encode() for key in keys]


def test_an_image_size_that_no_recipe_names_is_said_to_be_unknown(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "a", ROWS)
    assert export_tokens(folder, "parquet", str(tmp_path / "out")).image_size is None
    assert "Image size: not known" in (tmp_path / "out/README.md").read_text()


def test_the_page_lists_what_an_export_says(tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, "megatron", str(tmp_path))
    said = described(tmp_path)
    page = (PROJECT / "pipelines/tokens/EXPORTS.md").read_text()
    common, _, megatron = page.partition("\n## Megatron\n")
    for text, fields in ((common, said), (megatron.partition("`layout` of")[2], said["layout"])):
        listed: set[str] = set()
        for names in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \|$", text, re.MULTILINE):
            listed.update(re.findall(r"`(\w+)`", names))
        assert listed == set(fields)
