"""Images are decoded ahead of the encoder within bounded memory, and an error of reading is raised."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from dualtoken.model.vision.transform import Transform
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.images.samples import KeptSample
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.image_stream import ImageStream, PixelBudget


class OneImage(ImageShard):
    """A shard of one image, over and over."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def image(self, row: int) -> bytes:
        assert row >= 0
        return self._data


def peak_megabytes(work: Callable[[], None]) -> float:
    """Return how much memory a call takes at once, over what was held before it."""
    Path("/proc/self/clear_refs").write_text("5")

    def read(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))

    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def test_decoded_pixels_are_bounded_by_batches_in_flight_and_not_by_the_unit() -> None:
    stream = ImageStream(
        PretokenizeConfig(batch_size=4, decode_threads=2), Transform(image_size=32), beside_gpu=False
    )
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000), "teal").save(file, "JPEG")
    shard = OneImage(file.getvalue())
    rows = [KeptSample(row, bytes([row]) * 16) for row in range(40)]
    seen = list[int]()

    def read(count: int) -> None:
        seen.extend(len(batch.found) for batch in stream.batches(shard, rows[:count]))

    read(4)
    assert peak_megabytes(lambda: read(40)) < 40 * 1000 * 1000 * 3 / 1e6 / 3
    assert seen == [4] * 11


def test_an_image_larger_than_all_room_is_decoded_alone() -> None:
    room = PixelBudget(10)
    began = Event()
    go_on = Event()

    def decode_a_large_one() -> None:
        with room.taken(1000):
            began.set()
            go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        with room.taken(4), room.taken(6):
            large = pool.submit(decode_a_large_one)
            assert not began.wait(0.05), "it does not wait for the others"
        assert began.wait(30)
        small = pool.submit(lambda: room.taken(1).__enter__())
        assert not wait([small], 0.05).done, "another one starts beside it"
        go_on.set()
        for task in (large, small):
            task.result(30)


def test_an_error_of_reading_is_raised_and_not_taken_for_a_bad_image() -> None:
    class Unplugged(OneImage):
        def image(self, row: int) -> bytes:
            raise OSError(5, f"no disk under row {row}")

    stream = ImageStream(PretokenizeConfig(), Transform(image_size=32), beside_gpu=False)
    with pytest.raises(OSError, match="no disk"):
        list(stream.batches(Unplugged(b""), [KeptSample(0, b"0" * 16)]))
