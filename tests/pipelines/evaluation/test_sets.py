"""Evaluation sets: the same samples from every kind of source, and whatever is wrong with one named."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import AnySet
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.set_rows import SetRow, set_rows
from dualtoken.pipelines.evaluation.sets import SET_FILE, ResolvedSet, data_file, read_unit, resolve
from dualtoken.pipelines.images.image_questions import Asked, read_questions
from tests.helpers.evaluated import CLASSES, picture, write_folder

NUM = 7


def set_of(**values: object) -> AnySet:
    return TypeAdapter(AnySet).validate_python(values)


def rows_of(**values: object) -> list[SetRow]:
    return list(set_rows("test", set_of(**values)))


def table(*, nested: bool) -> pa.Table:
    images = [picture(number) for number in range(NUM)]
    return pa.table(
        {
            "image": [{"bytes": image, "path": None} for image in images] if nested else images,
            "id": [f"{number:03d}.png" for number in range(NUM)],
            "texts": [[f"{CLASSES[number % 3]} number {number}"] for number in range(NUM)],
            "colour": [number % 3 for number in range(NUM)],
            "camera": [f"camera {number // 2}" for number in range(NUM)],
        }
    )


def as_folder(place: Path) -> list[SetRow]:
    folder = write_folder(place / "images", NUM)
    return rows_of(kind="folder", folder=str(folder), label_column="colour", cluster_column="camera")


def as_parquet(place: Path) -> list[SetRow]:
    pq.write_table(table(nested=False).slice(0, 3), place / "a.parquet")
    pq.write_table(table(nested=False).slice(3), place / "b.parquet", row_group_size=2)
    return rows_of(kind="parquet", folder=str(place), **COLUMNS)


def as_arrow_stream(place: Path) -> list[SetRow]:
    whole = table(nested=True)
    with pa.OSFile(str(place / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=4)
    return rows_of(kind="hf_cache", folder=str(place), **COLUMNS)


def as_arrow_file(place: Path) -> list[SetRow]:
    whole = table(nested=True)
    with pa.OSFile(str(place / "data.arrow"), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=4)
    return rows_of(kind="hf_cache", folder=str(place / "data.arrow"), **COLUMNS)


def as_webdataset(place: Path) -> list[SetRow]:
    with tarfile.open(place / "data.tar", "w") as tar:
        for number in range(NUM):
            caption = f"{CLASSES[number % 3]} number {number}".encode()
            for suffix, data in (("png", picture(number)), ("txt", caption)):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return rows_of(kind="shards", folder=str(place))


COLUMNS = {
    "key_column": "id",
    "caption_column": "texts",
    "label_column": "colour",
    "cluster_column": "camera",
}


@pytest.mark.parametrize("source", [as_folder, as_parquet, as_arrow_stream, as_arrow_file])
def test_every_source_gives_the_same_samples(source: Callable[[Path], list[SetRow]], tmp_path: Path) -> None:
    rows = source(tmp_path)
    assert [row.image for row in rows] == [picture(number) for number in range(NUM)]
    assert [row.captions for row in rows] == [(f"{CLASSES[n % 3]} number {n}",) for n in range(NUM)]
    assert [row.cluster for row in rows] == [f"camera {number // 2}" for number in range(NUM)]
    assert [row.name for row in rows] == [f"{number:03d}.png" for number in range(NUM)]
    named = CLASSES if source is as_folder else ("0", "1", "2")
    assert [row.label for row in rows] == [named[number % 3] for number in range(NUM)]
    assert len({row.key for row in rows}) == NUM


def test_webdataset_tars_give_images_and_captions(tmp_path: Path) -> None:
    rows = as_webdataset(tmp_path)
    assert [row.image for row in rows] == [picture(number) for number in range(NUM)]
    assert [row.captions for row in rows] == [(f"{CLASSES[n % 3]} number {n}",) for n in range(NUM)]


def test_a_folders_name_may_be_the_class(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / CLASSES[number % 2]).mkdir(exist_ok=True)
        (tmp_path / CLASSES[number % 2] / f"{number}.png").write_bytes(picture(number))
    rows = rows_of(kind="folder", folder=str(tmp_path), label_column="folder:")
    assert sorted((row.name, row.label) for row in rows) == [
        ("ochre/1.png", "ochre"),
        ("ochre/3.png", "ochre"),
        ("teal/0.png", "teal"),
        ("teal/2.png", "teal"),
    ]


def test_scenes_are_the_same_anywhere_and_described() -> None:
    rows = rows_of(kind="scenes", num_images=3, seed=5)
    again = rows_of(kind="scenes", num_images=3, seed=5)
    assert rows == again
    assert len(json.loads(rows[0].description)["objects"]) == 2


def test_a_set_is_in_order_of_key_whatever_the_order_of_its_source(tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    pq.write_table(table(nested=False), tmp_path / "a.parquet")
    config = set_of(kind="parquet", folder=str(tmp_path / "a.parquet"), **COLUMNS)
    first, folder = resolve("test", config, root, 3)
    shuffled = table(nested=False).take([3, 1, 6, 0, 5, 2, 4])
    pq.write_table(shuffled, tmp_path / "a.parquet")
    second, same_folder = resolve("test", config, root, 3)
    assert first == second
    assert folder == same_folder
    assert first.units == {"00000": 3, "00001": 3, "00002": 1}
    assert first.has == ("captions", "labels", "clusters")
    keys: list[bytes] = []
    for unit in first.units:
        keys += read_unit(Store(folder), unit, tmp_path)["key"].to_pylist()
    assert keys == sorted(keys)


def test_a_changed_image_is_another_set(tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    images = write_folder(tmp_path / "images", 3)
    config = set_of(kind="folder", folder=str(images))
    first, folder = resolve("test", config, root, 8)
    (images / "001.png").write_bytes(picture(99))
    second, other_folder = resolve("test", config, root, 8)
    assert first.set_hash != second.set_hash
    assert folder != other_folder
    assert ResolvedSet.read(Store(folder), SET_FILE) == first


@pytest.mark.parametrize("column", ["caption", "colour", "camera"])
def test_a_changed_caption_class_or_cluster_is_another_set(column: str, tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    images = write_folder(tmp_path / "images", 4)
    options = {"label_column": "colour", "cluster_column": "camera", "class_names": [*CLASSES, "other"]}
    config = set_of(kind="folder", folder=str(images), **options)
    first = resolve("test", config, root, 8)[0]
    metadata = (images / "metadata.csv").read_text()
    changed = {
        "caption": ("number 2", "number 3"),
        "colour": (",plum", ",other"),
        "camera": ("camera 1", "x"),
    }
    (images / "metadata.csv").write_text(metadata.replace(*changed[column]))
    assert resolve("test", config, root, 8)[0].set_hash != first.set_hash


def test_a_byte_changed_in_a_resolved_set_is_refused_by_name(tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    config = set_of(kind="folder", folder=str(write_folder(tmp_path / "images", 3)))
    _, folder = resolve("test", config, root, 8)
    file = Path(folder) / data_file("00000")
    stored = pq.read_table(file)
    images = stored["image"].to_pylist()
    images[1] = images[0]
    pq.write_table(stored.set_column(3, stored.schema.field("image"), [images]), file)
    name = stored["name"].to_pylist()[1]
    with pytest.raises(UserError, match=f"the image of {name} was changed"):
        read_unit(Store(folder), "00000", tmp_path)


def test_what_is_wrong_with_a_source_is_named(tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    images = write_folder(tmp_path / "images", 3)

    def error_of(**values: object) -> str:
        with pytest.raises(UserError) as error:
            resolve("test", set_of(**values), root, 8)
        assert "\n" not in str(error.value)
        return str(error.value)

    twice = table(nested=False).take([0, 1, 0])
    pq.write_table(twice, tmp_path / "twice.parquet")
    keyed = {"kind": "parquet", "folder": str(tmp_path / "twice.parquet"), "key_column": "id"}
    assert "a key twice, of 000.png and 000.png" in error_of(**keyed)
    assert "key_column=idd is no column" in error_of(**keyed | {"key_column": "idd"})
    assert "no image's bytes" in error_of(**keyed | {"image_column": "camera"})
    labelled = {"kind": "folder", "folder": str(images), "label_column": "colour"}
    message = error_of(**labelled, class_names=["teal", "ochre"])
    assert "002.png has the label 'plum', which is none of the 2 classes" in message
    (images / "001.png").unlink()
    assert "001.png cannot be read" in error_of(kind="folder", folder=str(images))
    assert "no .arrow file" in error_of(kind="hf_cache", folder=str(images))
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1\0\0 and nothing else")
    assert "damaged" in error_of(kind="hf_cache", folder=str(tmp_path / "broken.arrow"))


def test_questions_belong_to_a_set_that_asks_for_them(tmp_path: Path) -> None:
    root = Store(str(tmp_path / "root"))
    plain, folder = resolve("s", set_of(kind="scenes", num_images=3), root, 8)
    asked, asked_folder = resolve("s", set_of(kind="scenes", num_images=3, questions=True), root, 8)
    assert plain.has == ("captions", "scenes")
    kinds = ("colour questions", "count questions", "dots questions", "place questions")
    assert asked.has == ("captions", "scenes", "questions", *kinds, "shape questions", "size questions")
    assert plain.set_hash != asked.set_hash
    assert "questions" not in read_unit(Store(folder), "00000", tmp_path).column_names
    [first, *_] = read_unit(Store(asked_folder), "00000", tmp_path)["questions"].to_pylist()
    assert {turn["kind"] for turn in json.loads(first)} >= {"shape", "dots"}


def test_a_column_of_questions_is_read_and_what_is_none_is_named(tmp_path: Path) -> None:
    def rows(*questions: str | None) -> list[SetRow]:
        whole = (
            table(nested=False)
            .slice(0, len(questions))
            .append_column("asked", pa.array(questions, pa.string()))
        )
        pq.write_table(whole, tmp_path / "a.parquet")
        return rows_of(kind="parquet", folder=str(tmp_path / "a.parquet"), questions_column="asked")

    turns = json.dumps([{"question": "how many?", "answer": 0}])
    assert [row.questions for row in rows(turns, None)] == [turns, ""]
    assert read_questions(turns) == [Asked("", "how many?", "0")]
    for text in ("no JSON", "{}", '[{"question": "why?"}]'):
        with pytest.raises(
            UserError, match=r"sets.test.questions_column=asked: .*give a JSON list of objects"
        ):
            rows(text)
