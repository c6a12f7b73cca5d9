"""The generated corpus: pure, split by combinations, and described truly."""

import hashlib
import io
import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.images.scene_generator import (
    COLOURS,
    IMAGE_SIZE,
    QUADRANTS,
    RGB,
    SHAPES,
    SIZES,
    Attribute,
    Scene,
    Split,
    attribute_choices,
    canonical_caption,
    caption,
    describe,
    questions,
    render,
    scene,
    split_of,
)
from dualtoken.pipelines.images.scenes import SceneImages, Worker

CHOICES: tuple[tuple[Attribute, int], ...] = (("shape", 6), ("colour", 8), ("size", 2))


def pair(drawn: Scene) -> frozenset[tuple[str, ...]]:
    first, second = drawn.objects
    return frozenset({first[:4], second[:4]})


def scenes_of(split: Split, seed: int, count: int) -> list[Scene]:
    return [scene(split, seed, index) for index in range(count)]


@pytest.fixture(scope="module")
def scenes() -> dict[Split, list[Scene]]:
    return {"train": scenes_of("train", 0, 3000), "heldout": scenes_of("heldout", 0, 3000)}


def test_splits_share_no_combination_whatever_the_seed(scenes: dict[Split, list[Scene]]) -> None:
    train = set(map(pair, scenes["train"] + scenes_of("train", 9, 500)))
    heldout = set(map(pair, scenes["heldout"]))
    assert not train & heldout
    assert len(train) > 3000
    assert len(heldout) > 2000


def test_a_pair_is_in_one_split_in_either_order() -> None:
    first = ("ring", "red", "small", "top left")
    second = ("cross", "blue", "large", "top right")
    assert split_of(first, second) == split_of(second, first)


def test_each_split_shows_every_value_and_one_pair_in_eight_is_held_out(
    scenes: dict[Split, list[Scene]],
) -> None:
    assert set(COLOURS) == set(RGB)
    for drawn_scenes in scenes.values():
        values: set[str] = set()
        for drawn in drawn_scenes:
            for placed in drawn.objects:
                values |= {placed.shape, placed.colour, placed.size, placed.quadrant}
        assert values == {*SHAPES, *COLOURS, *SIZES, *QUADRANTS}
    objects = list(product(SHAPES, COLOURS, ["small"], QUADRANTS))
    splits: Counter[Split] = Counter()
    for first, second in product(objects, objects):
        if first[3] < second[3]:
            splits[split_of(first, second)] += 1
    assert 0.11 < splits["heldout"] / splits.total() < 0.14


def test_a_scene_is_a_function_of_its_name() -> None:
    assert scene("train", 0, 7) == scene("train", 0, 7)
    others = [scene("train", 0, 8), scene("train", 1, 7), scene("heldout", 0, 7)]
    assert scene("train", 0, 7) not in others
    assert render(scene("train", 0, 7)).tobytes() == render(scene("train", 0, 7)).tobytes()


def test_pixels_and_words_are_the_ones_of_this_version() -> None:
    """Pinned: another platform, numpy or refactoring draws the same, or the stage's version is raised."""
    pixels = hashlib.sha256()
    words = hashlib.sha256()
    for drawn in scenes_of("train", 0, 64):
        pixels.update(render(drawn).tobytes())
        words.update(json.dumps([caption(drawn), questions(drawn), describe(drawn)]).encode())
    assert (pixels.hexdigest()[:16], words.hexdigest()[:16]) == ("30322a2157c08016", "90137b4a8ba40edb")


def test_objects_are_drawn_where_and_as_described(scenes: dict[Split, list[Scene]]) -> None:
    half = IMAGE_SIZE // 2
    for drawn in scenes["train"][:300]:
        pixels = np.asarray(render(drawn)).astype(int)
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        for placed in drawn.objects:
            left = half * placed.quadrant.endswith("right")
            top = half * placed.quadrant.startswith("bottom")
            assert left <= placed.x - placed.radius
            assert placed.x + placed.radius < left + half
            assert top <= placed.y - placed.radius
            assert placed.y + placed.radius < top + half
            num_covered = (abs(pixels - placed.rgb).sum(axis=2) == 0).sum()
            assert num_covered > placed.radius**2 * 0.7
            # A ring is empty in its middle; nothing else is.
            is_filled = abs(pixels[placed.y, placed.x] - placed.rgb).sum() == 0
            assert is_filled == (placed.shape != "ring")
        for dot in drawn.dots:
            assert (pixels[dot.y : dot.y + 2, dot.x : dot.x + 2] == dot.rgb).all()


def test_captions_say_all_of_both_objects_and_nothing_of_dots(scenes: dict[Split, list[Scene]]) -> None:
    synonyms = {"small": ("small", "little"), "large": ("large", "big")}
    for drawn in scenes["train"]:
        text = caption(drawn)
        assert len(text.replace(",", " ,").split()) <= 26
        assert "dot" not in text
        for placed in drawn.objects:
            assert placed.shape in text
            assert placed.colour in text
            assert placed.quadrant in text
            plain, other = synonyms[placed.size]
            assert plain in text or other in text


def test_captions_vary_and_the_canonical_phrasing_is_among_them(scenes: dict[Split, list[Scene]]) -> None:
    num_canonical = 0
    first_words: set[str] = set()
    for drawn in scenes["train"]:
        text = caption(drawn)
        first_words.add(text.split(maxsplit=1)[0])
        if text in {canonical_caption(drawn.objects), canonical_caption(drawn.objects[::-1])}:
            num_canonical += 1
    assert 0.4 < num_canonical / len(scenes["train"]) < 0.6
    assert len(first_words) >= 4


def test_questions_are_answered_truly(scenes: dict[Split, list[Scene]]) -> None:
    kinds: set[str] = set()
    for drawn in scenes["heldout"][:500]:
        for item in questions(drawn):
            kinds.add(item["kind"])
            check_answer(drawn, **item)
    assert kinds == {"shape", "colour", "size", "place", "count", "dots"}


def check_answer(drawn: Scene, kind: str, question: str, answer: str) -> None:
    numbers = ("zero", "one", "two")
    by_quadrant = {placed.quadrant: placed for placed in drawn.objects}
    asked = question.removesuffix("?")
    if kind in {"shape", "colour", "size"}:
        quadrant = next(quadrant for quadrant in by_quadrant if asked.endswith(quadrant))
        assert answer == getattr(by_quadrant[quadrant], kind)
    elif kind == "place":
        placed = by_quadrant[answer]
        assert asked == f"where is the {placed.size} {placed.colour} {placed.shape}"
    elif kind == "count":
        (value,) = {*SHAPES, *COLOURS, *SIZES}.intersection(asked.split())
        num_objects = sum(value in placed[:3] for placed in drawn.objects)
        assert answer == numbers[num_objects]


def test_choices_differ_in_one_attribute_and_hold_the_truth(scenes: dict[Split, list[Scene]]) -> None:
    for drawn in scenes["heldout"][:100]:
        description = json.loads(json.dumps(describe(drawn)))
        for index in (0, 1):
            for attribute, count in CHOICES:
                captions, right = attribute_choices(description, index, attribute)
                assert captions[right] == canonical_caption(drawn.objects)
                assert len(set(captions)) == len(captions) == count
                value = getattr(drawn.objects[index], attribute)
                assert f" {value} " in f"{captions[right]} "
        assert description == describe(drawn)


def test_a_unit_is_written_twice_alike_and_served_by_path(tmp_path: Path) -> None:
    recipe = load_recipe("scenes")
    job = StageJob("scenes", "scenes-heldout", recipe, str(tmp_path), "0", {}, ())
    output = Worker(job).run(Unit("00001", 20), tmp_path)
    first = (tmp_path / "00001.parquet").read_bytes()
    Worker(job).run(Unit("00001", 20), tmp_path)
    assert (tmp_path / "00001.parquet").read_bytes() == first
    assert output.files == ("00001.parquet",)
    assert output.ledger is not None
    assert output.ledger["status"].to_pylist() == ["ok"] * 20
    rows = pq.read_table(tmp_path / "00001.parquet").to_pylist()
    expected = scene("heldout", 0, recipe.download.rows_per_shard + 3)
    assert rows[3]["url"] == "00001/0003.png"
    assert rows[3]["caption"] == caption(expected)
    assert json.loads(rows[3]["description"]) == describe(expected)
    assert json.loads(rows[3]["questions"]) == questions(expected)
    images = SceneImages(str(tmp_path))
    served = images("00001/0003.png")
    assert served is not None
    assert Image.open(io.BytesIO(served)).tobytes() == render(expected).tobytes()
    for path in ("00001/0020.png", "00000/0000.png", "../x/0000.png", "00001/0003.jpg", "", "00001/-1.png"):
        assert images(path) is None
