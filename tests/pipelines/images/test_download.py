"""The download stage against a real server: every row is accounted for, and bytes repeat."""

import gc
import hashlib
import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualtoken.infra.image_server import serve_images
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.ledger import count_statuses, sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.core.tombstones import Tombstones
from dualtoken.pipelines.errors import ExitCode, UserError, exit_code
from dualtoken.pipelines.images import download, scenes
from dualtoken.pipelines.images.scene_generator import render, scene
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.images.sources import count_source_rows, source_identity
from tests.helpers.descriptors import no_free_descriptor
from tests.helpers.downloads import run_all
from tests.helpers.hostile_images import big_text_png, jpeg_of_many_scans
from tests.helpers.image_shards import write_img2dataset_shard
from tests.helpers.images import encode, noise_image
from tests.helpers.waiting import free_ports


@pytest.fixture
def server() -> Iterator[str]:
    bodies = {
        "page.html": b"<html>no</html>",
        "cut.png": encode(noise_image())[:5000],
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


def test_each_hostile_image_costs_one_row_and_its_neighbours_nothing(tmp_path: Path) -> None:
    sound = encode(noise_image(), "JPEG")
    hostile = {
        "scans.jpg": (jpeg_of_many_scans(1000), "too_many_scans"),
        "slow.jpg": (jpeg_of_many_scans(99, side=5000), "too_slow"),
        "bomb.png": (encode(Image.new("L", (20_000, 20_000))), "too_many_pixels"),
        "cut.png": (encode(noise_image())[:5000], "truncated_image"),
        "cut.jpg": (sound[: len(sound) // 2], "truncated_image"),
        "damaged.png": (big_text_png(noise_image())[:-40] + bytes(40), "broken_image"),
        "text.jpg": (b"<svg/>", "not_an_image"),
    }
    bodies = {name: body for name, (body, _) in hostile.items()}
    expected: list[str] = []
    names: list[str] = []
    for name, (_, reason) in hostile.items():
        names += [name, f"sound-{len(names)}.jpg"]
        expected += [reason, ""]
        bodies[names[-1]] = sound
    with serve_images(bodies.get) as base:
        table = pa.table({"url": [f"{base}/{name}" for name in names], "caption": names})
        pq.write_table(table, tmp_path / "urls.parquet")
        source = {"kind": "urls", "table": str(tmp_path / "urls.parquet")}
        recipe = recipe_with(source, max_pixels=100_000_000, decode_seconds=0.5)
        (output,) = run_all(job_of(recipe, tmp_path), tmp_path / "a")
    assert output.ledger is not None
    assert output.ledger["reason"].to_pylist() == expected
    with ImageShard(tmp_path / "a/00000.tar", tmp_path / "a/00000.parquet") as shard:
        pictures = [shard.image(row) for row in range(len(shard.keys))]
    assert len(pictures) == len(hostile)
    assert len(set(pictures)) == 1


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


# Python leaves the event loop unclosed that it lacked descriptors for, and fails to close it as it is freed.
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*BaseEventLoop.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("spare", [4, 6, 9])
def test_too_few_descriptors_fail_the_unit_and_no_row(
    tmp_path: Path, server: str, table_of: TableOf, spare: int
) -> None:
    job = table_of([f"{server}/ok/{n}.png" for n in range(30)], accept_dead_units=True)
    worker = download.Worker(job)
    (tmp_path / "scratch").mkdir()
    assert worker.run(job.units[0], tmp_path / "scratch").files  # all that is loaded once, is
    with no_free_descriptor(spare), pytest.raises(OSError, match="Too many open files") as error:
        worker.run(job.units[0], tmp_path / "scratch")
    assert exit_code(error.value) == ExitCode.TEMPORARY
    # The loop is freed here, and not in another test, whose warnings are errors.
    del error
    gc.collect()


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


def test_a_source_shard_that_changed_since_the_plan_is_not_taken_over_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_img2dataset_shard(folder)
    recipe = recipe_with({"kind": "shards", "folder": str(folder)})
    job = job_of(recipe, tmp_path / "out")
    write_stage_record(job, {"settings": {"source": source_identity(recipe, "scenes-train")}})
    run_all(job, tmp_path / "a")
    whole = (folder / "00002.tar").read_bytes()
    place = whole.index(b"\x89PNG")
    (folder / "00002.tar").write_bytes(whole[:place] + b"<htm" + whole[place + 4 :])
    with pytest.raises(UserError, match=r"theirs/00002\.tar was changed since"):
        run_all(job, tmp_path / "b")


def test_rows_whose_text_is_no_utf_8_are_named_and_the_others_fetched(tmp_path: Path, server: str) -> None:
    def text(*values: bytes | None) -> pa.Array:
        return pa.array(values).cast(options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))

    urls = [f"{server}/ok/{n}.png".encode() for n in range(4)]
    table = pa.table(
        {
            "url": text(urls[0], urls[1], urls[2] + b"\xff", urls[3]),
            "caption": text(b"c0", b"caf\xe9", b"c2", b"c3"),
            "tags": pa.ListArray.from_arrays([0, 1, 2, 3, 4], text(b"a", b"b", b"c", b"\xff")),
        }
    )
    pq.write_table(table, tmp_path / "urls.parquet")
    source = {"kind": "urls", "table": str(tmp_path / "urls.parquet"), "keep_columns": ["tags"]}
    (output,) = run_all(job_of(recipe_with(source), tmp_path), tmp_path / "a")
    assert output.ledger is not None
    assert count_statuses(output.ledger) == {"failed:bad_text": 2, "failed:bad_url": 1, "ok": 1}
    rows = pq.read_table(tmp_path / "a/00000.parquet").to_pylist()
    assert [row["error_message"] for row in rows] == [
        None,
        "caption is not UTF-8",
        "url is not UTF-8",
        "tags is not UTF-8",
    ]


def test_kept_numbers_that_are_not_finite_are_null_in_the_tars_json(tmp_path: Path, server: str) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    kept = {
        "score": [float("nan"), float("inf")],
        "boxes": [[{"x": float("-inf")}], [{"x": 1.0}]],
        "blob": [b"\xff", None],
    }
    urls = [f"{server}/ok/{n}.png" for n in range(2)]
    pq.write_table(pa.table({"url": urls, "caption": ["a", "b"], **kept}), tmp_path / "urls.parquet")
    source = {"kind": "urls", "table": str(tmp_path / "urls.parquet"), "keep_columns": list(kept)}
    run_all(job_of(recipe_with(source), tmp_path), tmp_path / "a")
    with tarfile.open(tmp_path / "a/00000.tar") as tar:
        texts = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".json")]  # type: ignore[union-attr]
    described = [json.loads(text, parse_constant=refuse) for text in texts]
    assert [(row["score"], row["boxes"], row["blob"]) for row in described] == [
        (None, [{"x": None}], "ff"),
        (None, [{"x": 1.0}], None),
    ]
    json.loads((tmp_path / "a/00000_stats.json").read_text(), parse_constant=refuse)
