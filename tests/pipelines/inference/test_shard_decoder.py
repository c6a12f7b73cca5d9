"""A shard's samples are decoded one at a time: memory stays the same, and one bad image is one row."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.images.samples import KeptSample
from dualtoken.pipelines.images.shards import SUCCESS, ImageShard, ImageShardWriter, ShardRow
from dualtoken.pipelines.inference.shard_decoder import ShardDecoder
from tests.helpers.hostile_images import exif_of, jpeg_of_many_scans
from tests.helpers.images import encode, noise_image

SIDE = 1500
PEAK = """
import resource, sys
from pathlib import Path
from tests.pipelines.inference.test_shard_decoder import decode_shard
decode_shard(Path(sys.argv[1]), size=8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_shard(folder: Path, images: list[bytes]) -> None:
    """Write shard 00000 of given images."""
    folder.mkdir()
    with ImageShardWriter(folder, "00000", "png") as writer:
        for number, image in enumerate(images):
            writer.write(ShardRow(None, "", bytes([number]) * 16, SUCCESS), image)


def view(_: KeptSample, picture: Image.Image) -> Tensor:
    return to_tensor([picture], 8)


def decode_shard(folder: Path, size: int, threads: int = 0) -> tuple[ShardDecoder, list[list[int]]]:
    """Decode shard 00000; return its decoder, and the rows of each batch."""
    rows: list[list[int]] = []
    with ImageShard(folder / "00000.tar", folder / "00000.parquet") as shard:
        samples = [KeptSample(row, key) for row, key in enumerate(shard.keys)]
        decoder = ShardDecoder(shard, view, threads=threads)
        for batch in decoder.batches(samples, size):
            assert len(batch.levels) == len(batch.samples)
            rows.append([sample.row for sample in batch.samples])
    return decoder, rows


def peak_bytes(folder: Path) -> int:
    """Return the resident memory of a process that decodes a shard, at its peak."""
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True
    )
    return int(found.stdout) * 1024


@pytest.mark.parametrize("threads", [0, 3])
def test_a_damaged_image_is_one_row_with_its_reason_and_batches_stay_full(
    threads: int, tmp_path: Path
) -> None:
    good = encode(noise_image())
    write_shard(
        tmp_path / "shard", [good, good[:300], good, b"no image", good, encode(noise_image(), "TIFF")]
    )
    decoder, rows = decode_shard(tmp_path / "shard", 3, threads)
    assert rows == [[0, 2, 4], [5]]
    ledger = decoder.ledger([KeptSample(row, bytes([row]) * 16) for row in range(6)])
    assert ledger["reason"].to_pylist() == ["", "undecodable", "", "undecodable", "", ""]
    details = ledger["detail"].to_pylist()
    assert details[1].startswith("truncated_image: ")
    assert details[3].startswith("not_an_image: ")


def test_foreign_images_are_upright_and_costly_ones_decoded_apart(tmp_path: Path) -> None:
    turned = encode(noise_image((24, 16)), "JPEG", exif=exif_of(6))
    write_shard(tmp_path / "shard", [turned, jpeg_of_many_scans(200)])
    sizes: list[tuple[int, int]] = []

    def note(sample: KeptSample, picture: Image.Image) -> Tensor:
        sizes.append(picture.size)
        return view(sample, picture)

    with ImageShard(tmp_path / "shard/00000.tar", tmp_path / "shard/00000.parquet") as shard:
        samples = [KeptSample(row, key) for row, key in enumerate(shard.keys)]
        assert len(list(ShardDecoder(shard, note).batches(samples, 2))) == 1
    assert sizes == [(16, 24), (64, 64)]


@pytest.mark.slow
def test_memory_stays_the_same_while_rows_grow_eightfold(tmp_path: Path) -> None:
    image = encode(Image.new("RGB", (SIDE, SIDE), "red"))
    write_shard(tmp_path / "few", [image] * 8)
    write_shard(tmp_path / "many", [image] * 64)
    one_picture = SIDE * SIDE * 3
    assert peak_bytes(tmp_path / "many") < peak_bytes(tmp_path / "few") + 8 * one_picture
