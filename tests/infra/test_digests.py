"""A file's checksums are those of its content, whatever the pieces that it was written in."""

from pathlib import Path

import pytest

from dualtoken.infra.digests import CHUNK_BYTES, DigestingFile, digest


def test_a_file_knows_its_checksums_as_soon_as_it_is_written(tmp_path: Path) -> None:
    pieces = [b"", b"small", bytes(range(256)) * (CHUNK_BYTES // 100), b"x" * CHUNK_BYTES, b"end"]
    with DigestingFile(tmp_path / "file") as file:
        for piece in pieces:
            assert file.write(memoryview(piece)) == len(piece)
        assert file.tell() == sum(map(len, pieces))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert file.digest == digest(tmp_path / "file")
    with pytest.raises(FileExistsError):
        DigestingFile(tmp_path / "file")
