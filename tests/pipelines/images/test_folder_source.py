"""A folder of images as a source: every image and every row of its table is accounted for, wherever it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.ledger import count_statuses
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.sources import count_source_rows, source_identity
from tests.helpers.downloads import run_all
from tests.helpers.images import encode


def picture(shade: int = 0) -> bytes:
    return encode(Image.new("RGB", (40, 40), (shade, 0, 0)))


def write(folder: Path, *names: str) -> None:
    """Write an image of its own shade under each name."""
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(shade))


def recipe_of(folder: Path | str, **source: Any) -> Recipe:
    values = load_recipe("folder").model_dump(mode="json")
    values["corpora"]["web"] = {"source": {"kind": "folder", "folder": str(folder), **source}}
    values["download"] |= {"rows_per_shard": 100, "image_size": 32}
    return Recipe.model_validate(values)


def job_of(recipe: Recipe, place: Path) -> StageJob:
    counts = count_source_rows(recipe, "web")
    units = tuple(Unit(f"{index:05d}", rows) for index, rows in enumerate(counts))
    return StageJob("download", "web", recipe, str(place / "out"), "0", {}, units)


def downloaded(recipe: Recipe, place: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's only shard."""
    run_all(job_of(recipe, place), place / "shard")
    return pq.read_table(place / "shard/00000.parquet").to_pylist()


def captions(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["url"]: row["caption"] for row in rows}


def reasons(rows: list[dict[str, Any]]) -> dict[str | None, str]:
    return {row["url"]: row["reason"] for row in rows}


def test_captions_are_of_the_table_then_of_the_text_file_then_of_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "cats/cat_on-a_mat.JPG", "cats/dog.png", "a10.png", "a9.png")
    (folder / "metadata.csv").write_text(
        "file_name,caption,license\n./cats/cat_on-a_mat.JPG,of the table,cc0\n"
    )
    (folder / "cats/cat_on-a_mat.txt").write_text("of a file that the table goes before")
    (folder / "cats/dog.txt").write_bytes(b"\xef\xbb\xbf of the file \n")
    rows = downloaded(recipe_of(folder, keep_columns=["license"]), tmp_path)
    assert list(captions(rows).items()) == [
        ("a9.png", "a9"),
        ("a10.png", "a10"),
        ("cats/cat_on-a_mat.JPG", "of the table"),
        ("cats/dog.png", "of the file"),
    ]
    assert [row["license"] for row in rows] == [None, None, "cc0", None]
    assert [row["status"] for row in rows] == ["success"] * 4


@pytest.mark.parametrize("column", ["caption", "text"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_metadata_of_an_imagefolder_is_found_by_itself_also_below(
    suffix: str, column: str, tmp_path: Path
) -> None:
    write(tmp_path / "images", "train/x/1.png", "train/2.png", "test/1.png")
    table = pa.table({"file_name": ["x/1.png", "2.png"], column: ["one", "two"]})
    write_table(table, tmp_path / f"images/train/metadata.{suffix}")
    rows = downloaded(recipe_of(tmp_path / "images"), tmp_path)
    assert captions(rows) == {"test/1.png": "1", "train/2.png": "two", "train/x/1.png": "one"}


def write_table(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in table.to_pylist()]
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        lines = [delimiter.join(table.column_names)]
        lines += [delimiter.join(row.values()) for row in table.to_pylist()]
    path.write_text("\n".join(lines) + "\n")


def test_a_row_without_its_file_fails_by_reason_and_an_image_without_a_row_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "here.png", "extra.png", "twice.png")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / "broken.png").write_bytes(b"<html>")
    names = ["here.png", "gone.png", "../out.png", "/etc/passwd", "", "twice.png", "twice.png", "broken.png"]
    names = [*names, "notes.pdf"]
    table = pa.table({"id": names, "alt": [f"c{n}" for n in range(len(names))]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = {"captions": str(tmp_path / "t.parquet"), "file_column": "id", "caption_column": "alt"}
    (output,) = run_all(job_of(recipe_of(folder, **source), tmp_path), tmp_path / "a")
    rows = pq.read_table(tmp_path / "a/00000.parquet").to_pylist()
    assert [row["caption"] for row in rows if row["url"] == "twice.png"] == ["c5", "c6"]
    assert reasons(rows) == {
        None: "bad_name",
        "../out.png": "bad_name",
        "/etc/passwd": "bad_name",
        "gone.png": "no_such_file",
        "broken.png": "not_an_image",
        "notes.pdf": "not_an_image",
        "here.png": "",
        "extra.png": "",
        "twice.png": "",
    }
    assert output.facts["captions_from"] == {"table": 9, "file_name": 1}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "a.png", ".hidden.png", ".cache/b.png", "real/c.png")
    (folder / "README.md").write_text("no image")
    (folder / "a.txt").write_text("a caption")
    (folder / "again").symlink_to(folder / "real")
    (output,) = run_all(job_of(recipe_of(folder), tmp_path), tmp_path / "a")
    assert output.facts["skipped"] == {"hidden": 2, "linked_folders": 1, "other_files": 1}
    assert output.facts["captions_from"] == {"text_file": 1, "file_name": 1}


def test_links_out_of_the_folder_are_never_read_and_those_within_are(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "a.png", "c.png")
    write(tmp_path / "images-of-others", "secret.png")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out.png").symlink_to(tmp_path / "images-of-others/secret.png")
    (folder / "c.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "same.png").symlink_to("a.png")
    os.mkfifo(folder / "fifo.png")
    rows = downloaded(recipe_of(folder), tmp_path)
    assert reasons(rows) == {
        "a.png": "",
        "c.png": "link_outside",
        "dangling.png": "no_such_file",
        "fifo.png": "not_a_file",
        "out.png": "link_outside",
        "same.png": "",
    }
    assert not any("secret" in row["caption"] for row in rows)
    (folder / "metadata.csv").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match=r"source\.folder has metadata\.csv, a link to .*set .*captions"):
        count_source_rows(recipe_of(folder), "web")


def test_names_and_captions_that_are_no_utf_8_are_read_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (b"caf\xe9_noir.png", b"z\xff.png"):
        (folder / os.fsdecode(name)).write_bytes(picture())
    write(folder, "y.png")
    (folder / "y.txt").write_bytes(b"caf\xe9")
    table = pa.table({"file_name": pa.array([b"z\xff.png"], pa.binary()), "caption": ["of the table"]})
    pq.write_table(table, folder / "metadata.parquet")
    rows = downloaded(recipe_of(folder), tmp_path)
    assert captions(rows) == {"caf\\xe9_noir.png": "caf noir", "y.png": "", "z\\xff.png": "of the table"}
    assert [row["reason"] for row in rows] == ["", "bad_text", ""]


def test_a_remote_folder_gives_the_bytes_and_the_identity_of_a_local_one(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "b/1.png", "b/2.png", ".hidden.png", "3.png")
    (folder / "metadata.csv").write_text("file_name,caption\nb/1.png,one\ngone.png,none\n")
    (folder / "3.txt").write_text("three")
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/test_folder_source", recursive=True)
    local, remote = recipe_of(folder), recipe_of("memory://test_folder_source")
    assert source_identity(remote, "web") == source_identity(local, "web")
    run_all(job_of(local, tmp_path), tmp_path / "a")
    run_all(job_of(remote, tmp_path), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_content_of_images_texts_and_table_decides_the_identity_and_no_place_does(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "a.png", "b.png")
    (folder / "a.txt").write_text("a")
    (folder / "metadata.csv").write_text("file_name,caption\nb.png,b\n")
    seen = [source_identity(recipe_of(folder), "web")]
    folder = folder.rename(tmp_path / "moved")
    assert source_identity(recipe_of(folder), "web") == seen[0]
    changes = {"a.png": picture(9), "a.txt": b"b", "metadata.csv": b"file_name,caption\nb.png,c\n"}
    for name, data in changes.items():
        (folder / name).write_bytes(data)
        seen.append(source_identity(recipe_of(folder), "web"))
        assert seen.count(seen[-1]) == 1, name


def test_an_image_that_changed_since_the_plan_is_not_committed_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, "a.png", "b.png")
    recipe = recipe_of(folder)
    job = job_of(recipe, tmp_path)
    write_stage_record(job, {"settings": {"source": source_identity(recipe, "web")}})
    run_all(job, tmp_path / "a")
    (folder / "b.png").write_bytes(picture(9))
    with pytest.raises(UserError, match="images was changed since this download was begun"):
        run_all(job, tmp_path / "b")


def test_a_text_of_a_megabyte_beside_an_image_is_not_taken_for_its_caption(tmp_path: Path) -> None:
    write(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "images/a.txt").write_text("a" * (1 << 20))
    (tmp_path / "images/b.txt").write_text("b" * (1 << 20) + "b")
    rows = downloaded(recipe_of(tmp_path / "images"), tmp_path)
    assert reasons(rows) == {"a.png": "", "b.png": "long_caption"}


def test_a_table_of_other_spellings_names_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "images", "x/1.png", "cafe\u0301.png")
    lines = ["file_name,caption", "x\\1.png,one", "caf\u00e9.png,two"]
    (tmp_path / "images/metadata.csv").write_text("\n".join(lines) + "\n")
    rows = downloaded(recipe_of(tmp_path / "images"), tmp_path)
    assert captions(rows) == {"cafe\u0301.png": "two", "x/1.png": "one"}


def test_rows_are_numbered_across_shards_and_files_over_the_limit_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder, *(f"{number}.png" for number in range(1, 13)))
    (folder / "5.png").write_bytes(picture() + bytes(5000))
    values = recipe_of(folder).model_dump(mode="json")
    values["download"] |= {"rows_per_shard": 5, "max_bytes": 4000}
    outputs = run_all(job_of(Recipe.model_validate(values), tmp_path), tmp_path / "a")
    urls: list[str] = []
    for unit in range(3):
        urls += pq.read_table(tmp_path / f"a/{unit:05d}.parquet")["url"].to_pylist()
    assert urls == [f"{number}.png" for number in range(1, 13)]
    assert outputs[0].ledger is not None
    assert count_statuses(outputs[0].ledger) == {"ok": 4, "failed:too_many_bytes": 1}


MISTAKES: dict[str, Callable[[Path], Recipe]] = {
    r"web\.source\.folder='nope://x': Protocol not known: nope; set it to": lambda _: recipe_of("nope://x"),
    r"web\.source\.folder='.*/none': no such file or directory; set it": lambda at: recipe_of(at / "none"),
    r"web\.source\.folder='.*/a\.png': not a directory; set it": lambda at: recipe_of(at / "images/a.png"),
    r"web\.source\.folder='.*/empty' has no file: set it": lambda at: recipe_of(at / "empty"),
    r"web\.source\.folder='.*/texts' has no image in it \(\.jpg": lambda at: recipe_of(at / "texts"),
    r"has .*two/metadata\.csv and .*two/metadata\.jsonl: set .*captions to": lambda at: recipe_of(
        at / "tables"
    ),
    r"web\.source\.file_column='x' is no column of .*t\.csv, which has file_name, caption": lambda at: (
        recipe_of(at / "images", captions=str(at / "t.csv"), file_column="x")
    ),
    r"captions='.*t\.csv', row 1 .* holds what looks like the rows up to": lambda at: recipe_of(
        at / "images", captions=str(at / "t.csv")
    ),
    r"web\.source\.keep_columns is set without a table: set .*captions": lambda at: recipe_of(
        at / "images", keep_columns=["license"]
    ),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_named_by_key_at_the_plan(said: str, tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "tables/two/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("no image")
    for suffix in ("csv", "jsonl"):
        (tmp_path / f"tables/two/metadata.{suffix}").write_text("")
    (tmp_path / "t.csv").write_text('file_name,caption\na.png,"5 inches\nb.png,c\nc.png,d"\n')
    with pytest.raises(UserError, match=said):
        count_source_rows(MISTAKES[said](tmp_path), "web")
