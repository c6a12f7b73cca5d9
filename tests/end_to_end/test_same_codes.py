"""The same picture has equal codes as a file of `tokenize` and as a sample of a shard that is taken over."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.pretokenize import Worker
from dualtoken.pipelines.tokens.shards import STREAMS, Ids, codes_of, read_data_shard
from tests.helpers.command_line import printed_lines
from tests.helpers.hostile_images import exif_of
from tests.helpers.icc_profiles import ADOBE, DISPLAY_P3, INKS
from tests.helpers.images import encode, noise_image
from tests.helpers.tiny_run import LoadTiny, planned_job, tokens_job

CORPUS = "tiny-train"
PICTURE = Image.merge(
    "RGB",
    [
        Image.linear_gradient("L"),
        Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90),
        Image.radial_gradient("L"),
    ],
).resize((90, 61))


def sixteen_bits() -> Image.Image:
    grey = np.asarray(PICTURE.convert("L"), np.uint16)
    return Image.fromarray(grey * 257 + np.arange(90, dtype=np.uint16))


def clear_palette() -> bytes:
    return encode(PICTURE.quantize(16), transparency=bytes(range(0, 256, 16)))


FILES = {
    "00.jpg": encode(PICTURE, "JPEG", exif=exif_of(6)),
    "01.png": encode(PICTURE, exif=exif_of(5)),
    "02.jpg": encode(PICTURE, "JPEG", icc_profile=DISPLAY_P3),
    "03.webp": encode(PICTURE, "WEBP", icc_profile=ADOBE, exif=exif_of(8)),
    "04.jpg": encode(PICTURE.convert("CMYK"), "JPEG", icc_profile=INKS, exif=exif_of(3)),
    "05.jpg": encode(PICTURE.convert("CMYK"), "JPEG"),
    "06.png": encode(sixteen_bits()),
    "07.png": clear_palette(),
    "08.png": encode(noise_image((33, 70), "LA")),
}


@pytest.fixture(scope="module")
def job(finished: Recipe, load_tiny: LoadTiny, tmp_path_factory: pytest.TempPathFactory) -> StageJob:
    """The job that encodes the files, taken over from a webdataset tar and kept by a filter."""
    folder = tmp_path_factory.mktemp("same")
    files = folder / "files"
    files.mkdir()
    for name, content in FILES.items():
        (files / name).write_bytes(content)
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/0.tar", "w") as tar:
        for name in FILES:
            tar.add(files / name, name)
    recipe = load_tiny(
        folder / "root",
        f"corpora.{CORPUS}.source={{kind: shards, folder: {folder / 'shards'}}}",
        f"teacher={{kind: local, folder: {planned_job(finished, 'teacher').folder}}}",
        "filter.rules=[{rule: min_side, pixels: 1}]",
    )
    for command in ("scenes", "download", "teacher", "score", "filter"):
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    encoding = tokens_job(finished)
    inputs = dict(encoding.inputs)
    for stage in ("download", "score", "filter"):
        inputs[f"{stage}/{CORPUS}"] = planned_job(recipe, stage, CORPUS).folder
    units = planned_job(recipe, "download", CORPUS).units
    return replace(encoding, inputs=inputs, units=units, folder=str(folder / "tokens"))


def codes_of_shard(job: StageJob, scratch: Path) -> dict[str, Ids]:
    """Encode the taken-over shard, and return each stream's codes, a row a file."""
    scratch.mkdir()
    output = Worker(job).run(job.units[0], scratch)
    assert output.ledger is not None
    assert output.ledger["status"].to_pylist() == ["ok"] * len(FILES)
    table = read_data_shard(scratch / output.files[0])
    return {stream: codes_of(table, stream) for stream in STREAMS}


def codes_of_files(finished: Recipe, folder: Path, out: Path) -> dict[str, Ids]:
    """Run `tokenize` on the files, and return each stream's codes, a row a file."""
    printed_lines("tokenize", planned_job(finished, "train").folder, folder, "--out", out)
    with safe_open(out, "numpy") as stored:
        names = json.loads(stored.metadata()["dualtoken"])["names"]
        assert [Path(name).name for name in names] == list(FILES)
        return {stream: stored.get_tensor(stream).reshape(len(FILES), -1) for stream in STREAMS}


def test_files_and_samples_of_shards_have_equal_codes(
    job: StageJob, finished: Recipe, tmp_path: Path
) -> None:
    from_shard = codes_of_shard(job, tmp_path / "scratch")
    files = Path(job.folder).parent / "files"
    from_files = codes_of_files(finished, files, tmp_path / "codes.safetensors")
    for stream in STREAMS:
        assert np.array_equal(from_shard[stream], from_files[stream])
        # The pictures are told apart by it.
        assert len(np.unique(from_shard[stream], axis=0)) > len(FILES) // 2
