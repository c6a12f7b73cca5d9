"""Samples of a tar: found as webdataset finds them, and what is ambiguous or damaged is named."""

import io
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.tar_index import index_samples, index_tar

SAMPLES = {
    "a.jpg": b"1",
    "a.txt": b"2",
    "b/c.input.JPG": b"3",
    "b/c.cls": b"4",
    f"{'long' * 60}.png": b"5",
    "é.webp": b"6",
}


def write_tar(
    path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None
) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if change is not None:
                change(header)
            tar.addfile(header, io.BytesIO(content))


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_those_that_webdataset_finds(tar_format: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        for name, content in SAMPLES.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset  # noqa: PLC0415

        theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    whole = (tmp_path / "a.tar").read_bytes()
    index = index_samples(io.BytesIO(whole), "a.tar")
    assert index.is_whole
    assert index.scattered is None
    assert list(index.samples) == [sample["__key__"] for sample in theirs]
    for members, sample in zip(index.samples.values(), theirs, strict=True):
        found = {suffix: whole[place.offset : place.offset + place.size] for suffix, place in members.items()}
        assert found == {name: value for name, value in sample.items() if not name.startswith("__")}
    assert set(index_tar(tmp_path / "a.tar")) == {"a", "b/c", "long" * 60, "é"}


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"caf\udce9.jpg": b"1"})
    assert list(index_tar(tmp_path / "a.tar")) == ["caf\\xe9"]


def test_a_plain_suffix_is_preferred_and_two_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.input.png": b"1", "a.mask.png": b"2", "a.png": b"333"})
    assert index_tar(tmp_path / "a.tar")["a"].size == 3
    write_tar(tmp_path / "b.tar", {"a.input.png": b"1", "a.mask.png": b"2"})
    with pytest.raises(UserError, match=r"b\.tar has several images of the sample a, \.input\.png"):
        index_tar(tmp_path / "b.tar")


def test_a_member_twice_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": b"1", "./a.jpg": b"2"})
    with pytest.raises(UserError, match=r"a\.tar has the member \./a\.jpg twice"):
        index_tar(tmp_path / "a.tar")


def test_a_hard_link_is_what_it_links_to_and_other_links_are_an_error(tmp_path: Path) -> None:
    def link(header: tarfile.TarInfo) -> None:
        if header.name == "b.jpg":
            header.type, header.linkname, header.size = tarfile.LNKTYPE, "a.jpg", 0

    def symlink(header: tarfile.TarInfo) -> None:
        if header.name == "b.jpg":
            header.type, header.linkname, header.size = tarfile.SYMTYPE, "a.jpg", 0

    write_tar(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b""}, link)
    index = index_tar(tmp_path / "a.tar")
    assert index["b"] == index["a"]
    write_tar(tmp_path / "b.tar", {"a.jpg": b"1", "b.jpg": b""}, symlink)
    with pytest.raises(UserError, match=r"b\.tar holds b\.jpg as a link"):
        index_tar(tmp_path / "b.tar")


def is_whole(tar: bytes) -> bool:
    try:
        return index_samples(io.BytesIO(tar), "a.tar").is_whole
    except UserError:
        return False


def test_a_tar_cut_or_damaged_anywhere_is_not_whole(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": b"x" * 600 for number in range(4)})
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    for cut in [*headers[1:], end, *(offset + 700 for offset in headers[1:])]:
        assert not is_whole(whole[:cut])
    for offset in headers[1:]:
        damaged = whole[:offset] + bytes([255]) * 512 + whole[offset + 512 :]
        assert not is_whole(damaged)
    for garbage in (b"", b"no tar", bytes([255]) * 1024):
        with pytest.raises(UserError, match=r"x\.tar is no whole tar"):
            index_samples(io.BytesIO(garbage), "x.tar")
