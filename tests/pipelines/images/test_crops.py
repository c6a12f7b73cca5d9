"""Crops lie inside the image, and depend on the recipe and the sample's key alone."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualtoken.pipelines.config.crops import AnyCrops, CenterCrop, GridCrops, RandomCrops
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.crops import Crop, crop_columns, views
from dualtoken.pipelines.runtime.plan import Planner
from tests.helpers.tiny_run import LoadTiny

KEY = b"k" * 16


def crops_of(size: tuple[int, int], *crops: AnyCrops, key: bytes = KEY) -> list[Crop]:
    found: list[Crop] = []
    for view in views(Image.new("RGB", size), crops, key):
        found += view.crops
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.one_of(
        st.builds(CenterCrop, kind=st.just("center"), flip=st.booleans()),
        st.builds(
            GridCrops,
            kind=st.just("grid"),
            rows=st.integers(1, 8),
            columns=st.integers(1, 8),
            scale=st.floats(0.01, 1),
        ),
        st.builds(
            RandomCrops,
            kind=st.just("random"),
            number=st.integers(1, 9),
            min_scale=st.floats(0.01, 1),
            seed=st.integers(-9, 9),
        ),
    ),
    st.binary(min_size=16, max_size=16),
)
def test_crops_are_squares_inside_the_image_as_many_as_the_recipe_counts(
    size: tuple[int, int], config: AnyCrops, key: bytes
) -> None:
    crops = crops_of(size, config, key=key)
    assert len(crops) == config.count * (1 + config.flip)
    for crop in crops:
        assert crop.width == crop.height >= 1
        assert 0 <= crop.left <= size[0] - crop.width
        assert 0 <= crop.top <= size[1] - crop.height
    assert crops_of(size, config, key=key) == crops


def test_a_grid_touches_the_edges() -> None:
    upper = [Crop(0, 0, 20, 20), Crop(20, 0, 20, 20), Crop(40, 0, 20, 20)]
    lower = [Crop(0, 20, 20, 20), Crop(20, 20, 20, 20), Crop(40, 20, 20, 20)]
    assert crops_of((60, 40), GridCrops(kind="grid", rows=2, columns=3)) == upper + lower
    assert crops_of((60, 40), GridCrops(kind="grid", rows=1, columns=1, scale=1)) == [Crop(10, 0, 40, 40)]


def test_random_crops_differ_by_key_and_seed() -> None:
    config = RandomCrops(kind="random", number=3)
    assert crops_of((64, 64), config) != crops_of((64, 64), config, key=b"l" * 16)
    assert crops_of((64, 64), config) != crops_of((64, 64), RandomCrops(kind="random", number=3, seed=1))
    assert len(set(crops_of((64, 64), config))) == 3


def test_a_squashing_tokenizer_sees_the_whole_image() -> None:
    (view,) = views(Image.new("RGB", (60, 40)), (CenterCrop(kind="center"),), KEY, "squash")
    assert view.crops == (Crop(0, 0, 60, 40),)


def test_no_samples_have_no_crops_and_all_columns() -> None:
    assert {len(column) for column in crop_columns([]).values()} == {0}


def test_the_default_said_in_words_is_the_default(tmp_path: Path, load_tiny: LoadTiny) -> None:
    assert load_tiny(tmp_path, "pretokenize.crops=[{kind: center}]") == load_tiny(tmp_path)


def test_a_plan_expects_a_row_per_variant(tmp_path: Path, load_tiny: LoadTiny) -> None:
    def output_bytes(*settings: str) -> float | None:
        return Planner(load_tiny(tmp_path, *settings)).get("pretokenize", "tiny-train").output_bytes

    whole_images = output_bytes()
    assert whole_images is not None
    assert output_bytes("pretokenize.crops=[{kind: grid, flip: true}]") == 8 * whole_images


def test_too_many_variants_are_refused_by_name(tmp_path: Path, load_tiny: LoadTiny) -> None:
    with pytest.raises(UserError, match="crops give 65 rows of tokens an image, at most 64: take some out"):
        load_tiny(tmp_path, "pretokenize.crops=[{kind: center}, {kind: grid, rows: 8, columns: 8}]")
    with pytest.raises(UserError, match=r"min_scale=0\.9 is over max_scale=0\.5"):
        load_tiny(tmp_path, "pretokenize.crops=[{kind: random, number: 1, min_scale: 0.9, max_scale: 0.5}]")
