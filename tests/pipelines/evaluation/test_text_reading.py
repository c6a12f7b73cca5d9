"""`text_kept` is the share of an image's text that can be read in its reconstruction."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.closeness import Closeness, weight_digests
from dualtoken.pipelines.evaluation.text_reading import TextReader, longest_common_subsequence
from tests.helpers.evaluated import canary, config_of, evaluated

IS_INSTALLED = find_spec("rapidocr") is not None
needs_rapidocr = pytest.mark.skipif(
    not IS_INSTALLED, reason="rapidocr is missing: pip install '.[ocr]' in the project's folder"
)
PROTOCOL = EvaluationProtocol(metrics=("text_kept",))


def picture(*lines: str) -> Image.Image:
    """Return lines of text, dark on light."""
    drawn = Image.new("RGB", (256, 256), (245, 240, 230))
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(32)
    for number, line in enumerate(lines):
        draw.text((20, 40 + 90 * number), line, (20, 30, 60), font)
    return drawn


def levels(*pictures: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures])


@pytest.fixture(scope="module")
def reader() -> TextReader:
    return TextReader()


@needs_rapidocr
def test_drawn_text_is_read_from_top_to_bottom_without_its_blanks(reader: TextReader) -> None:
    assert reader.text(picture("Fresh Bread", "OPEN 24 h")) == "FreshBreadOPEN24h"
    assert reader.text(picture()) == ""


@needs_rapidocr
def test_the_share_is_of_the_characters_of_the_original(reader: TextReader) -> None:
    original = picture("Fresh Bread", "OPEN 24 h")
    assert reader.share_kept(original, original) == 1
    assert reader.share_kept(picture("Fresh Bread"), original) == 10 / 17
    assert reader.share_kept(picture("Fresh Bread", "OPEN 24 h", "tomorrow"), original) == 1
    assert reader.share_kept(original.filter(ImageFilter.GaussianBlur(12)), original) == 0


@needs_rapidocr
def test_an_image_without_text_has_no_value(reader: TextReader) -> None:
    assert math.isnan(reader.share_kept(picture("Fresh Bread"), picture()))


@needs_rapidocr
def test_the_metric_of_a_batch_has_a_value_for_each_image_and_the_models_are_part_of_the_protocol() -> None:
    originals = levels(picture("Fresh Bread", "OPEN 24 h"), picture("Fresh Bread", "OPEN 24 h"), picture())
    images = levels(picture("Fresh Bread"), picture("Fresh Bread", "OPEN 24 h"), picture())
    values = Closeness(PROTOCOL, torch.device("cpu")).values("text_kept", images, originals)
    assert values[:2].tolist() == [10 / 17, 1]
    assert np.isnan(values[2])
    assert [len(sha256) for sha256 in weight_digests(PROTOCOL)["text_reader"].values()] == [64, 64, 64]


@needs_rapidocr
def test_an_evaluation_leaves_images_without_text_out_of_the_mean(tmp_path: Path) -> None:
    folder = tmp_path / "signs"
    folder.mkdir()
    picture("OPEN").crop((0, 20, 128, 148)).save(folder / "open.png")
    picture("SALE").crop((0, 20, 128, 148)).save(folder / "sale.png")
    picture().save(folder / "blank.png")
    sets = {"signs": {"kind": "folder", "folder": str(folder)}}
    config = config_of(tmp_path / "root", sets, {"text": {"metrics": ["text_kept", "psnr"], "batch_size": 2}})
    (result,) = evaluated(config, canary(tmp_path / "canary")).summary.results
    assert result.metrics["psnr"].n == 3
    assert result.metrics["text_kept"].n == 2
    assert result.metrics["text_kept"].value == 0, "nothing taught the canary to draw"


@pytest.mark.skipif(IS_INSTALLED, reason="rapidocr is installed")
def test_without_the_package_one_line_names_the_extra() -> None:
    with pytest.raises(UserError, match=r"text_kept needs the package rapidocr: pip install '\.\[ocr\]'"):
        weight_digests(PROTOCOL)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ("", "abc", 0),
        ("abc", "", 0),
        ("abcbdab", "bdcaba", 4),
        ("open", "xoxpxexnx", 4),
        ("aaaa", "aa", 2),
        ("äöü" * 40, "öüä" * 40, 119),
    ],
)
def test_the_longest_common_subsequence_keeps_the_order(first: str, second: str, length: int) -> None:
    assert longest_common_subsequence(first, second) == length
