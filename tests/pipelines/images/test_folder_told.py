"""What the command line says of a folder of images, with the shipped recipe."""

from pathlib import Path

from PIL import Image

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.runtime.plan import Planner
from tests.helpers.command_line import printed_lines
from tests.helpers.images import encode


def test_the_shipped_recipe_takes_a_folder_and_tells_what_was_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("red_1.png", "red_2.png", "red_3.png", ".hidden.png"):
        (folder / name).write_bytes(encode(Image.new("RGB", (80, 80), "red")))
    (folder / "red_2.txt").write_text("a red square")
    (folder / "notes.md").write_text("no image")
    (folder / "metadata.csv").write_text("file_name,text\nred_1.png,one\ngone.png,two\n")
    overrides = [f"root={tmp_path / 'data'}", f"corpora.web.source.folder={folder}"]
    settings = [word for override in overrides for word in ("--set", override)]
    lines = printed_lines("download", "folder", "--in-process", *settings)
    notes = [line.removeprefix("download web: ") for line in lines if line.startswith("download web: ")]
    assert notes[:2] == [
        "2 images without a row in the table of captions: 1 with captions in text files, 1 in their names",
        "left out: 1 hidden name, 1 non-image file",
    ]
    planned = Planner(load_recipe("folder", overrides)).get("download", "web")
    assert planned.job is not None
    manifest = read_manifest(Store(planned.job.folder))
    assert manifest is not None
    assert manifest.counts == {"ok": 3, "failed:no_such_file": 1}
    assert manifest.details == {
        "skipped": {"hidden": 1, "linked_folders": 0, "other_files": 1},
        "tables": 1,
        "captions_from": {"file_name": 1, "table": 2, "text_file": 1},
    }
