"""Rows that are wrong though every checksum is right are named; a dataset as the stages wrote it has none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import FileRecord, Receipt, receipt_name
from dualtoken.pipelines.inference.networks import (
    DeviceDescription,
    StreamCodes,
    TokenizerRunner,
    describe_device,
)
from dualtoken.pipelines.maintenance import reencode, row_encoder
from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify
from dualtoken.pipelines.maintenance.findings import Finding
from dualtoken.pipelines.maintenance.repair import repair
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.finish import finish
from dualtoken.pipelines.runtime.stage_folder import read_stage, stage_job
from dualtoken.pipelines.tokens.shards import codes_of, read_data_shard, write_data_shard

SETTINGS = DeepSettings(sample=1000)  # every row
Change = Callable[[list[bytes], np.ndarray, np.ndarray], None]


def findings(folder: Path, said: list[str] | None = None) -> list[Finding]:
    (checked,) = verify(str(folder))
    assert checked.findings == ()
    return list(deep_verify(checked, SETTINGS, (said if said is not None else []).append).findings)


def commit_again(folder: Path, unit: str, **changed: object) -> None:
    """Make a unit's receipt, the index and the manifest agree with the files as they are now."""
    store = Store(str(folder))
    receipt = Receipt.from_bytes(store.read(receipt_name(unit)))
    records = []
    for file in receipt.files:
        found = digest(folder / file.name)
        records.append(
            FileRecord(name=file.name, bytes=found.bytes, sha256=found.sha256, xxh3_128=found.xxh3_128)
        )
    store.put_bytes(
        receipt.model_copy(update={"files": tuple(records), **changed}).to_bytes(), receipt_name(unit)
    )
    finish(stage_job(store, read_stage(store)))


def rewrite(folder: Path, unit: str, change: Change) -> None:
    """Change a data shard in a way that no checksum can tell."""
    path = folder / f"data/{unit}.arrow"
    table = read_data_shard(path)
    keys = table["key"].to_pylist()
    semantic = codes_of(table, "semantic").copy()
    pixel = codes_of(table, "pixel").copy()
    schema = table.schema
    del table
    change(keys, semantic, pixel)
    path.unlink()
    write_data_shard(path, schema, keys, semantic, pixel)
    commit_again(folder, unit)


def test_what_the_stages_wrote_is_right_row_by_row(finished: Recipe) -> None:
    said: list[str] = []
    checked = [deep_verify(one, SETTINGS, said.append) for one in verify(finished.root)]
    assert [finding for one in checked for finding in one.findings] == []
    assert sum(line.endswith("encoded again") for line in said) == 2


def test_a_code_of_another_image_is_found_by_encoding_again_and_repair_restores_it(tokens: Path) -> None:
    shard = tokens / "data/00001.arrow"
    before = digest(shard)

    def swap(_: list[bytes], __: np.ndarray, pixel: np.ndarray) -> None:
        pixel[2, 5] = (pixel[2, 5] + 1) % 16

    rewrite(tokens, "00001", swap)
    said: list[str] = []
    found = [finding for finding in findings(tokens, said) if "encoded again" in str(finding.problem)]
    assert [(finding.name, str(finding.problem)) for finding in found] == [
        ("data/00001.arrow", "wrong: row 2: 3.1% of the pixel codes are others when it is encoded again")
    ]
    (checked,) = verify(str(tokens))
    repair(deep_verify(checked, SETTINGS, said.append), LocalExecutor(), lambda _: None)
    assert digest(shard) == before
    assert findings(tokens) == []


def test_rows_that_differ_within_the_tolerance_given_pass(tokens: Path) -> None:
    def swap(_: list[bytes], __: np.ndarray, pixel: np.ndarray) -> None:
        pixel[2, 5] = (pixel[2, 5] + 1) % 16
        pixel[3, 5:7] = (pixel[3, 5:7] + 1) % 16

    rewrite(tokens, "00001", swap)
    (checked,) = verify(str(tokens))
    deep = deep_verify(
        checked, SETTINGS._replace(tolerance=1.5 / 32), lambda _: None
    )  # of 32 codes a row and stream
    assert [str(finding.problem) for finding in deep.findings if "encoded again" in str(finding.problem)] == [
        "wrong: row 3: 6.2% of the pixel codes are others when it is encoded again"
    ]


def made_on(folder: Path, unit: str, device: str, **facts: object) -> None:
    """Change where a unit's receipt says that it was made."""
    receipt = Receipt.from_bytes(Store(str(folder)).read(receipt_name(unit)))
    commit_again(folder, unit, facts={**receipt.facts, "device": device, **facts})


def test_codes_of_another_device_differ_by_rounding_and_both_are_told(tokens: Path) -> None:
    def round_otherwise(_: list[bytes], __: np.ndarray, pixel: np.ndarray) -> None:
        pixel[2, 5] = (pixel[2, 5] + 1) % 16
        pixel[3] = (pixel[3] + 1) % 16

    rewrite(tokens, "00001", round_otherwise)
    made_on(tokens, "00001", "NVIDIA H200")
    said: list[str] = []
    found = [str(finding.problem) for finding in findings(tokens, said) if finding.unit == "00001"]
    here = describe_device(torch.device("cpu")).device
    devices = f"made on NVIDIA H200, torch {torch.__version__}, encoded on {here}, torch {torch.__version__}"
    all_others = "wrong: row 3: 100.0% of the pixel codes are others when it is encoded again"
    assert [problem for problem in found if "encoded again" in problem] == [f"{all_others} ({devices})"]
    assert devices in said[-1]
    assert "of the codes are others, as rounding gives" in said[-1]


def test_rows_of_the_same_gpu_stand_in_batches_of_the_first_size_and_may_not_differ(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(_: list[bytes], __: np.ndarray, pixel: np.ndarray) -> None:
        pixel[2, 5] = (pixel[2, 5] + 1) % 16

    rewrite(tokens, "00001", swap)
    gpu = DeviceDescription("NVIDIA H200", str(torch.__version__), "91002", "580.82.07")
    for unit in sorted(path.stem for path in (tokens / "data").iterdir()):
        made_on(tokens, unit, "NVIDIA H200", cudnn="91002", driver="580.82.07", batch_size=3)
    monkeypatch.setattr(row_encoder, "describe_device", lambda _: gpu)
    sizes: list[int] = []
    encode_levels = TokenizerRunner.encode_levels

    def recorded(self: TokenizerRunner, levels: torch.Tensor) -> StreamCodes:
        sizes.append(len(levels))
        return encode_levels(self, levels)

    monkeypatch.setattr(TokenizerRunner, "encode_levels", recorded)
    said: list[str] = []
    (checked,) = verify(str(tokens))
    deep = deep_verify(checked, SETTINGS._replace(sample=20), said.append)
    again = [str(finding.problem) for finding in deep.findings if "encoded again" in str(finding.problem)]
    assert set(again) <= {"wrong: row 2: 3.1% of the pixel codes are others when it is encoded again"}
    assert set(sizes) == {3, 1}, "four samples a shard, three at once"
    assert len(said) == 1


def test_a_code_beyond_its_codebook_is_named_with_its_row(tokens: Path) -> None:
    def set_one(_: list[bytes], semantic: np.ndarray, __: np.ndarray) -> None:
        semantic[1, 0] = 16

    rewrite(tokens, "00002", set_one)
    assert "wrong: row 1: semantic code 16 of a codebook of 16" in [
        str(finding.problem) for finding in findings(tokens)
    ]


def test_rows_in_another_order_than_their_captions_are_named(tokens: Path) -> None:
    def turn(keys: list[bytes], semantic: np.ndarray, pixel: np.ndarray) -> None:
        keys.reverse()
        semantic[:] = semantic[::-1].copy()
        pixel[:] = pixel[::-1].copy()

    rewrite(tokens, "00000", turn)
    assert {(finding.unit, str(finding.problem).split(":")[1]) for finding in findings(tokens)} == {
        ("00000", " its keys are not those of meta/00000.parquet, row by row"),
        ("00000", " its keys are not those that ledger/00000.parquet passed on"),
    }


def test_a_shard_that_stands_under_another_ones_name_as_well_gives_keys_twice(tokens: Path) -> None:
    for name in ("data/{}.arrow", "meta/{}.parquet", "ledger/{}.parquet"):
        shutil.copyfile(tokens / name.format("00000"), tokens / name.format("00001"))
    commit_again(tokens, "00001")
    assert any("is in two shards" in str(finding.problem) for finding in findings(tokens))


def test_a_ledger_that_does_not_close_is_named(tokens: Path) -> None:
    path = tokens / "ledger/00003.parquet"
    ledger = pq.read_table(path)
    pq.write_table(pa.concat_tables([ledger.slice(0, 1), ledger.slice(0, len(ledger) - 1)]), path)
    commit_again(tokens, "00003")
    assert ("ledger/00003.parquet", "00003") in [(finding.name, finding.unit) for finding in findings(tokens)]


def test_without_its_images_a_dataset_is_still_read_and_says_that_nothing_was_encoded(tokens: Path) -> None:
    shutil.rmtree(tokens.parents[1] / "shards")
    said: list[str] = []
    assert findings(tokens, said) == []
    assert "no row is encoded again" in said[0]


@pytest.mark.parametrize("name", ["index.parquet", "manifest.json", "stage.json"])
def test_what_the_plain_check_found_damaged_is_named_and_the_rest_looked_at_all_the_same(
    tokens: Path, name: str
) -> None:
    if name == "index.parquet":
        (tokens / name).unlink()
    else:
        (tokens / name).write_text("{")
    (checked,) = verify(str(tokens))
    said: list[str] = []
    deep = deep_verify(checked, SETTINGS, said.append)
    assert name in {finding.name for finding in deep.findings}
    assert deep.findings == checked.findings
    assert said == ([] if name == "stage.json" else [f"{tokens}: 36 rows of 10 shards encoded again"])


def test_the_rows_to_encode_again_are_spread_over_all_shards_by_their_rows(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: dict[str, list[int]] = {}
    monkeypatch.setattr(
        reencode,
        "_compare",
        lambda _job, _encoder, unit, rows: looked.update({unit: rows}) or reencode._Comparison([], []),
    )
    assert findings(tokens) == []
    sizes = {file.stem: len(read_data_shard(file)) for file in sorted((tokens / "data").iterdir())}
    assert looked == {unit: list(range(rows)) for unit, rows in sizes.items() if rows}
