"""The download stage against a real server: every row is accounted for, and bytes repeat."""

import functools
import hashlib
import io
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualtoken.infra.image_server import serve_images
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import check_closed, count_statuses, sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import Tombstones
from dualtoken.pipelines.errors import ExitCode, UserError, exit_code
from dualtoken.pipelines.images import download, scenes
from dualtoken.pipelines.images.prepare import ImagePreparer, Prepared, Rejected, check_image
from dualtoken.pipelines.images.scene_generator import render, scene
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.images.url_table import count_source_rows
from tests.helpers.image_shards import write_img2dataset_shard
from tests.helpers.waiting import free_ports

RED = (200, 30, 40)
WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def picture(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


@functools.cache
def preparer(**settings: Any) -> ImagePreparer:
    return ImagePreparer(DownloadConfig(image_size=32, encode_format="png", encode_quality=1, **settings))


def prepared(body: bytes, **settings: Any) -> Image.Image:
    result = preparer(**settings)(body)
    assert isinstance(result, Prepared), result
    image = Image.open(io.BytesIO(result.image))
    assert image.size == (result.width, result.height) == (32, 32)
    assert image.mode in {"RGB", "L"}
    # 8 bits: Pillow calls 16-bit colour RGB too.
    assert result.image[24] == 8
    return image


def rejected(body: bytes, **settings: Any) -> str:
    result = preparer(**settings)(body)
    assert isinstance(result, Rejected), "an image came back"
    return result.reason


def near(image: Image.Image, colour: tuple[int, ...], slack: int = 3) -> bool:
    levels = np.asarray(image.convert("RGB")).astype(int)
    return bool(abs(levels - colour).max() <= slack)


PLAIN = Image.new("RGB", (64, 48), RED)
CLEAR = Image.new("RGBA", (64, 48), (*RED, 0))


BLACK = Image.new("RGB", (64, 48))
DEEP_RED = [40 * 257, 30 * 257, 200 * 257]
"""RED as OpenCV writes it: blue, green, red, 16 bits each."""


def deep_png(levels: list[int]) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    return cv2.imencode(".png", np.full((48, 64, len(levels)), levels, np.uint16))[1].tobytes()


COLOURED = {
    "png": encode(PLAIN),
    "jpeg": encode(PLAIN, "JPEG", quality=95),
    "webp": encode(PLAIN, "WEBP", lossless=True),
    "gif": encode(PLAIN, "GIF"),
    "palette": encode(PLAIN.quantize(4)),
    "rgba": encode(PLAIN.convert("RGBA")),
    "cmyk": encode(PLAIN.convert("CMYK"), "JPEG", quality=95),
    "apng": encode(PLAIN, "PNG", save_all=True, append_images=[CLEAR.convert("RGB")]),
    "animated gif": encode(PLAIN, "GIF", save_all=True, append_images=[BLACK]),
    "animated webp": encode(PLAIN, "WEBP", lossless=True, save_all=True, append_images=[BLACK]),
    "16-bit": deep_png(DEEP_RED),
    "16-bit rgba": deep_png([*DEEP_RED, 65535]),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_every_kind_of_file_keeps_its_colour(kind: str) -> None:
    assert near(prepared(COLOURED[kind]), RED, 4)


GREY = {
    "grey": encode(PLAIN.convert("L")),
    "grey jpeg": encode(PLAIN.convert("L"), "JPEG", quality=95),
    "grey alpha": encode(PLAIN.convert("LA")),
    "16-bit grey": encode(Image.fromarray(np.full((48, 64), 84 * 257, np.uint16))),
}


@pytest.mark.parametrize("kind", GREY)
def test_every_kind_of_grey_keeps_its_level(kind: str) -> None:
    level = int(np.asarray(PLAIN.convert("L"))[0, 0])
    assert near(prepared(GREY[kind]), (level, level, level))


def test_one_bit_images_keep_black_and_white() -> None:
    assert near(prepared(encode(Image.new("1", (40, 40), 1))), WHITE)


TRANSPARENT = {
    "rgba": encode(CLEAR),
    "webp": encode(CLEAR, "WEBP", lossless=True),
    "palette": encode(PLAIN.quantize(4), transparency=0),
    "rgb key": encode(PLAIN, transparency=RED),
    "grey alpha": encode(Image.new("LA", (40, 40), (90, 0))),
    "grey key": encode(Image.new("L", (40, 40), 90), transparency=90),
    "gif": encode(CLEAR, "GIF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_white(kind: str) -> None:
    assert near(prepared(TRANSPARENT[kind]), WHITE)


def test_half_transparent_is_half_white() -> None:
    assert near(prepared(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128)))), (127, 127, 127))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})],
    ids=["png", "jpeg", "progressive", "webp", "gif"],
)
def test_images_cut_short_are_told_from_whole_ones(kind: str, settings: dict[str, Any], share: float) -> None:
    body = encode(picture(), kind, **settings)
    assert preparer()(body)[0]
    assert rejected(body[: int(len(body) * share)]) == "truncated_image"


def test_what_is_no_image_has_its_reason() -> None:
    page = b"<!doctype html><title>Gone</title>"
    for body in (page, b"", b"\0" * 100, encode(PLAIN, "BMP"), encode(PLAIN, "TIFF"), b"<svg/>"):
        assert rejected(body) == "not_an_image"
    broken = bytearray(encode(picture()))
    broken[len(broken) // 2] ^= 0xFF
    assert rejected(bytes(broken)) == "broken_image"


def test_pixels_are_counted_before_decoding() -> None:
    huge = bytearray(encode(Image.new("1", (8, 8))))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    assert rejected(bytes(huge)) == "too_many_pixels"
    assert rejected(encode(Image.new("L", (1000, 1001))), max_pixels=1_000_000) == "too_many_pixels"
    assert prepared(encode(Image.new("L", (1000, 1000))), max_pixels=1_000_000)


def test_a_line_is_not_blown_up_to_a_wall() -> None:
    line = encode(Image.new("L", (60_000, 1)))
    assert rejected(line, max_pixels=1_000_000) == "too_many_pixels"


@pytest.fixture
def server() -> Iterator[str]:
    bodies = {
        "page.html": b"<html>no</html>",
        "cut.png": encode(picture())[:5000],
        "big.png": encode(Image.new("L", (700, 700))),
    }
    for n in range(40):
        bodies[f"ok/{n}.png"] = encode(Image.new("RGB", (40 + n, 40), (n, 0, 0)))
    with serve_images(bodies.get) as base:
        yield base


def recipe_with(source: dict[str, Any], **settings: Any) -> Recipe:
    values = load_recipe("scenes").model_dump(mode="json")
    values["corpora"]["scenes-train"] = {"source": source}
    values["download"] |= {
        "rows_per_shard": 30,
        "concurrency": 8,
        "max_pixels": 400_000,
        "allow_private_addresses": True,
    } | settings
    return Recipe.model_validate(values)


def job_of(recipe: Recipe, folder: Path, inputs: dict[str, str] | None = None) -> StageJob:
    counts = count_source_rows(recipe, "scenes-train")
    units = tuple(Unit(f"{index:05d}", rows) for index, rows in enumerate(counts))
    return StageJob("download", "scenes-train", recipe, str(folder), "0", inputs or {}, units)


def run_all(job: StageJob, scratch: Path) -> list[UnitOutput]:
    scratch.mkdir()
    worker = download.Worker(job)
    outputs = [worker.run(unit, scratch) for unit in job.units]
    for unit, output in zip(job.units, outputs, strict=True):
        assert output.ledger is not None
        check_closed(output.ledger, unit.rows)
    return outputs


def test_every_row_of_a_table_is_accounted_for_in_order_and_bytes_repeat(tmp_path: Path, server: str) -> None:
    odd = [f"{server}/{name}" for name in ("page.html", "none.png", "cut.png", "big.png")]
    urls: list[str | None] = [f"{server}/ok/{n}.png" for n in range(38)]
    urls[3:3] = [*odd, None, "", "file:///etc/passwd", "not a url"]
    captions: list[str | None] = [f"c{n}" for n in range(len(urls))]
    captions[1] = None
    table = pa.table({"url": urls, "caption": captions, "license": ["cc0"] * len(urls)})
    path = tmp_path / "urls.parquet"
    pq.write_table(table, path)
    recipe = recipe_with({"kind": "urls", "table": str(path), "keep_columns": ["license"]})
    outputs = run_all(job_of(recipe, tmp_path), tmp_path / "a")
    first, second = outputs
    assert first.files == ("00000.tar", "00000.parquet", "00000_stats.json")
    assert second.files == ("00001.tar", "00001.parquet", "00001_stats.json")
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert written == sorted((*first.files, *second.files))
    assert first.ledger is not None
    assert count_statuses(first.ledger) == {
        "ok": 22,
        "failed:not_an_image": 1,
        "failed:http_404": 1,
        "failed:truncated_image": 1,
        "failed:too_many_pixels": 1,
        "failed:bad_url": 3,
        "failed:not_http": 1,
    }
    rows = pq.read_table(tmp_path / "a/00000.parquet").to_pylist()
    assert [row["url"] for row in rows] == urls[:30]
    assert [row["reason"] for row in rows[3:9]] == [
        "not_an_image",
        "http_404",
        "truncated_image",
        "too_many_pixels",
        "bad_url",
        "bad_url",
    ]
    assert Counter(row["status"] for row in rows) == {
        "success": 22,
        "failed_to_download": 5,
        "failed_to_resize": 3,
    }
    assert rows[1]["caption"] == ""
    assert rows[0]["license"] == "cc0"
    assert (rows[2]["width"], rows[2]["original_width"], rows[2]["original_height"]) == (64, 42, 40)
    assert rows[0]["sha256"] == hashlib.sha256(encode(Image.new("RGB", (40, 40), (0, 0, 0)))).hexdigest()
    with ImageShard(tmp_path / "a/00001.tar", tmp_path / "a/00001.parquet") as shard:
        assert shard.keys == [sample_key("scenes-train", 30 + row) for row in range(16)]
        reds = [Image.open(io.BytesIO(shard.image(row))).getpixel((5, 5)) for row in range(16)]
    assert reds == [(22 + n, 0, 0) for n in range(16)]
    run_all(job_of(recipe, tmp_path), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_private_addresses_are_refused_unless_the_recipe_allows_them(tmp_path: Path, server: str) -> None:
    pq.write_table(pa.table({"url": [f"{server}/ok/0.png"], "caption": ["c"]}), tmp_path / "urls.parquet")
    recipe = recipe_with(
        {"kind": "urls", "table": str(tmp_path / "urls.parquet")}, allow_private_addresses=False
    )
    (output,) = run_all(job_of(recipe, tmp_path), tmp_path / "a")
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"failed:private_address": 1}


@pytest.fixture
def table_of(tmp_path: Path) -> Callable[..., StageJob]:
    def make(urls: list[str | None], **settings: Any) -> StageJob:
        pq.write_table(pa.table({"url": urls, "caption": ["c"] * len(urls)}), tmp_path / "urls.parquet")
        return job_of(
            recipe_with({"kind": "urls", "table": str(tmp_path / "urls.parquet")}, retries=0, **settings),
            tmp_path,
        )

    return make


TableOf = Callable[..., StageJob]


def test_a_unit_that_nothing_answered_stays_open_and_says_what_to_do(
    tmp_path: Path, table_of: TableOf
) -> None:
    down = f"http://127.0.0.1:{free_ports(1)[0]}"
    job = table_of(
        [None, f"{down}/a.png", f"{down}/b.png", "http://no-such-host.invalid/c.png", "ftp://x/d.png"]
    )
    counted = rf"^none of 3 URLs gave an answer, 2 for connection, such as {down}/a\.png \(.*\): "
    what_to_do = r".* set download\.accept_dead_units=true"
    with pytest.raises(ConnectionError, match=counted + what_to_do) as error:
        run_all(job, tmp_path / "a")
    assert exit_code(error.value) == ExitCode.TEMPORARY
    assert list((tmp_path / "a").iterdir()) == []


def test_links_that_are_dead_for_good_can_be_accepted(tmp_path: Path, table_of: TableOf) -> None:
    (output,) = run_all(
        table_of([f"http://127.0.0.1:{free_ports(1)[0]}/a.png"] * 3, accept_dead_units=True), tmp_path / "a"
    )
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"failed:connection": 3}


def test_one_definite_answer_is_enough_to_finish_a_unit(
    tmp_path: Path, server: str, table_of: TableOf
) -> None:
    (output,) = run_all(
        table_of([f"http://127.0.0.1:{free_ports(1)[0]}/a.png", f"{server}/none.png"]), tmp_path / "a"
    )
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"failed:connection": 1, "failed:http_404": 1}


def test_generated_scenes_come_through_unchanged(tmp_path: Path) -> None:
    recipe = recipe_with(
        {"kind": "scenes", "split": "train", "num_images": 50}, allow_private_addresses=False
    )
    folder = tmp_path / "scenes"
    folder.mkdir()
    making = StageJob("scenes", "scenes-train", recipe, str(folder), "0", {}, ())
    for unit, rows in (("00000", 30), ("00001", 20)):
        scenes.Worker(making).run(Unit(unit, rows), folder)
    # The job as another process gets it: nothing of this one is needed.
    job = pickle.loads(pickle.dumps(job_of(recipe, tmp_path, {"scenes/scenes-train": str(folder)})))
    outputs = run_all(job, tmp_path / "a")
    assert [count_statuses(output.ledger) for output in outputs if output.ledger] == [{"ok": 30}, {"ok": 20}]
    assert outputs[0].facts["bytes_fetched"] > 30 * 3000
    with ImageShard(tmp_path / "a/00001.tar", tmp_path / "a/00001.parquet") as shard:
        assert Image.open(io.BytesIO(shard.image(7))).tobytes() == render(scene("train", 0, 37)).tobytes()
        assert shard.metadata["url"].to_pylist()[7] == "00001/0007.png"
        assert '"index": 37' in shard.metadata["description"].to_pylist()[7]


def test_whoever_is_forgotten_is_not_fetched_by_a_worker_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(
        pa.table({"url": ["http://127.0.0.1:9/1.png"], "caption": ["c"]}), tmp_path / "urls.parquet"
    )
    monkeypatch.chdir(tmp_path)
    recipe = recipe_with({"kind": "urls", "table": str(tmp_path / "urls.parquet")}, retries=0)
    Store("data").put_bytes(
        Tombstones(hosts=frozenset({"127.0.0.1"})).to_bytes(), "scenes-train/tombstones.json"
    )
    job = job_of(recipe, tmp_path)
    monkeypatch.chdir("/")
    (output,) = run_all(job, tmp_path / "a")
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"forgotten": 1}


def test_shards_of_img2dataset_are_taken_over_with_keys_and_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_img2dataset_shard(folder)
    for name in ("tar", "parquet"):
        (folder / f"00000.{name}").write_bytes((folder / f"00002.{name}").read_bytes())
    recipe = recipe_with({"kind": "shards", "folder": str(folder)})
    outputs = run_all(job_of(recipe, tmp_path), tmp_path / "a")
    assert [count_statuses(output.ledger) for output in outputs if output.ledger] == [
        {"ok": 8, "failed:failed_in_source": 4}
    ] * 2
    assert (tmp_path / "a/00001.tar").read_bytes() == (folder / "00002.tar").read_bytes()
    rows = pq.read_table(tmp_path / "a/00001.parquet").to_pylist()
    assert [row["sample_key"] for row in rows] == [sample_key("scenes-train", 12 + row) for row in range(12)]
    assert {row["reason"] for row in rows if row["status"] != "success"} == {"failed_in_source"}
    with ImageShard(tmp_path / "a/00001.tar", tmp_path / "a/00001.parquet") as shard:
        assert len(shard) == 8
        assert Image.open(io.BytesIO(shard.image(0))).size == (8, 8)


def test_a_damaged_source_shard_is_an_error_or_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_img2dataset_shard(folder)
    recipe = recipe_with({"kind": "shards", "folder": str(folder)})
    whole = (folder / "00002.tar").read_bytes()
    place = whole.index(b"\x89PNG")
    (folder / "00002.tar").write_bytes(whole[:place] + b"<htm" + whole[place + 4 :])
    (output,) = run_all(job_of(recipe, tmp_path), tmp_path / "a")
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"ok": 7, "failed:failed_in_source": 4, "failed:not_an_image": 1}
    (folder / "00002.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match=r"00002\.tar"):
        run_all(job_of(recipe, tmp_path), tmp_path / "b")


def test_a_huge_image_of_a_source_shard_has_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a process that prepares no image; Pillow refuses twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    verdict = check_image(encode(Image.new("L", (70, 70))), DownloadConfig(max_pixels=4000))
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "too_many_pixels"
