"""Stored targets come back as near as promised, and one mode is never taken for another."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dualtoken.pipelines.config.target_bytes import dense_bytes
from dualtoken.pipelines.config.teacher import StoredTargets, TargetsConfig
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.stored_targets import (
    LEAST_COSINE,
    MODE,
    decode_target,
    dense_fields,
    encode_dense,
    require_cosine,
    require_mode,
)
from tests.helpers.tiny_run import LoadTiny

NUM_TOKENS = 6
WIDTH = 1152
DENSE: tuple[StoredTargets, ...] = ("dense_float16", "dense_int8")


def tokens() -> np.ndarray[Any, Any]:
    """Return tokens like a large tower's: one of zeros, and some channels ten times as large as others."""
    generator = np.random.default_rng(0)
    made = generator.normal(size=(3, NUM_TOKENS, WIDTH)).astype(np.float32)
    made[:, :, :3] *= 10
    made[1, 2] = 0
    made[2] *= 1e-3
    return made


def table_of(values: np.ndarray[Any, Any], mode: StoredTargets) -> pa.Table:
    """Return target rows as the stage writes them, as far as training reads them."""
    pooled = pa.field("pooled", pa.list_(pa.float32(), WIDTH))
    fields = [pooled, *dense_fields(mode, values.shape[1], WIDTH)]
    columns = {"pooled": values[:, 0], **encode_dense(values, mode).columns}
    arrays = [pa.array(list(columns[field.name]), field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, {MODE: mode}))


@pytest.mark.parametrize("mode", DENSE)
def test_tokens_come_back_at_a_cosine_of_0_999_each(mode: StoredTargets) -> None:
    given = tokens()
    table = table_of(given, mode)
    for row, expected in enumerate(given):
        target = decode_target(table, row)
        assert target.dense is not None
        assert target.dense.dtype == np.float16
        assert target.pooled.tolist() == expected[0].tolist()
        found = target.dense.reshape(expected.shape).astype(np.float64)
        for token, expected_token in zip(found, expected, strict=True):
            length = np.linalg.norm(token) * np.linalg.norm(expected_token)
            if length == 0:
                assert not token.any()
                assert not expected_token.any()
            else:
                assert token @ expected_token / length >= LEAST_COSINE
                assert np.linalg.norm(token) == pytest.approx(np.linalg.norm(expected_token), rel=5e-3)


def test_int8_takes_half_of_the_bytes_and_the_plan_counts_them_all() -> None:
    sizes: dict[str, int] = {}
    for mode in DENSE:
        columns = encode_dense(tokens(), mode).columns
        sizes[mode] = sum(column.nbytes for column in columns.values()) // len(tokens())
        assert sizes[mode] == dense_bytes(mode, NUM_TOKENS, WIDTH)
    assert sizes["dense_int8"] < 0.51 * sizes["dense_float16"]
    assert encode_dense(tokens(), "pooled").columns == {}


def test_a_token_that_int8_cannot_hold_is_refused() -> None:
    given = tokens()
    given[0, 0, 0] = 1000.0
    given[0, 0, 1:] *= 3
    least = encode_dense(given, "dense_int8").least_cosine
    assert least < LEAST_COSINE
    with pytest.raises(UserError, match=r"^targets.mode=dense_int8 gives a token back at cosine 0\.99"):
        require_cosine(least, "dense_int8")
    require_cosine(encode_dense(given, "dense_float16").least_cosine, "dense_float16")


def test_another_mode_than_the_recipe_s_is_refused_with_both_sides() -> None:
    schema = table_of(tokens(), "dense_int8").schema
    require_mode(schema, "dense_int8", "s3://bucket/00000.arrow")
    with pytest.raises(
        UserError,
        match=r"^s3://bucket/00000.arrow holds targets.mode=dense_int8, the recipe wants dense_float16: run",
    ):
        require_mode(schema, "dense_float16", "s3://bucket/00000.arrow")


@pytest.mark.parametrize(("mode", "other"), [("dense_float16", "pooled"), ("pooled", "dense_float16")])
def test_files_from_before_modes_had_names_are_told_by_their_columns(
    mode: StoredTargets, other: StoredTargets
) -> None:
    schema = table_of(tokens(), mode).schema.remove_metadata()
    require_mode(schema, mode, "00000.arrow")
    with pytest.raises(UserError, match=f"holds targets.mode={mode}, the recipe wants {other}"):
        require_mode(schema, other, "00000.arrow")


def test_recipes_without_a_mode_and_those_that_say_the_same_keep_their_fingerprints() -> None:
    assert TargetsConfig().identity() == {"dense": True, "batch_size": 64}
    assert TargetsConfig(mode="dense_float16").identity() == TargetsConfig().identity()
    assert TargetsConfig(dense=False).identity() == {"dense": False, "batch_size": 64}
    others = [TargetsConfig(mode="pooled"), TargetsConfig(mode="dense_int8"), TargetsConfig(dense=False)]
    assert len({str(config.identity()) for config in [*others, TargetsConfig()]}) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["targets={mode: dense_int8, dense: false}"], "mode=dense_int8 and dense=false differ"),
        (["targets={mode: pooled}"], "compares tokens, targets.mode=pooled stores none"),
        (
            ["targets={mode: dense_int8}", "train.random_crop={}"],
            "targets.mode=dense_int8 says what the teacher saw once: set it to online",
        ),
        (["targets.mode=int4"], "'online', 'pooled', 'dense_float16' or 'dense_int8'"),
    ],
)
def test_modes_that_training_cannot_use_are_refused(
    overrides: list[str], said: str, tmp_path: Path, load_tiny: LoadTiny
) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        load_tiny(tmp_path, *overrides)
