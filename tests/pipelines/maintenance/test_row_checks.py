"""Checks of rows tell what the rows are, not what the machine lacks."""

import errno
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import Receipt, receipt_name
from dualtoken.pipelines.maintenance.row_checks import SHARD_CHECKS, OpenTokenShard
from dualtoken.pipelines.tokens.captions import meta_path
from dualtoken.pipelines.tokens.shards import data_path, read_data_shard, schema_metadata
from tests.helpers.descriptors import no_free_descriptor
from tests.helpers.token_datasets import write_tokens

(CAPTION_CHECK,) = [check for check in SHARD_CHECKS if "Captions" in str(check.__doc__)]


@pytest.fixture
def shard(tmp_path: Path) -> OpenTokenShard:
    store = Store(write_tokens(tmp_path / "tokens", 20, rows_per_shard=10))
    receipt = Receipt.read(store, receipt_name("00000"))
    table = read_data_shard(Path(store.path(data_path("00000"))))
    return OpenTokenShard(store, receipt, table, table["key"].to_pylist(), schema_metadata(table.schema))


def test_captions_that_no_descriptor_is_left_for_are_no_finding(shard: OpenTokenShard) -> None:
    assert list(CAPTION_CHECK(shard)) == []
    with no_free_descriptor(), pytest.raises(OSError, match="Too many open files") as error:
        list(CAPTION_CHECK(shard))
    assert error.value.errno == errno.EMFILE


@pytest.mark.parametrize("damage", [b"", b"PAR1 no table PAR1", None])
def test_captions_that_are_damaged_or_gone_are_a_finding(damage: bytes | None, shard: OpenTokenShard) -> None:
    captions = Path(shard.store.path(meta_path(shard.receipt)))
    captions.unlink()
    if damage is not None:
        captions.write_bytes(damage)
    (finding,) = CAPTION_CHECK(shard)
    assert "row by row" in finding
