"""Damage to files, and what `verify` finds."""

from pathlib import Path

import pyarrow.parquet as pq

from dualtoken.pipelines.maintenance.findings import Finding
from dualtoken.pipelines.maintenance.verify import verify


def flip_byte(file: Path, position: int | None = None) -> None:
    """Change one bit of the byte at a position, by default of the byte in the middle of the file."""
    content = bytearray(file.read_bytes())
    if position is None:
        position = len(content) // 2
    content[position] ^= 1
    file.write_bytes(content)


def cut_short(file: Path, num_bytes: int = 500) -> None:
    """Keep only the first bytes of a file."""
    file.write_bytes(file.read_bytes()[:num_bytes])


def findings_below(folder: Path | str) -> list[Finding]:
    """Verify every stage below a folder and return all findings."""
    findings: list[Finding] = []
    for checked in verify(str(folder)):
        findings += checked.findings
    return findings


def damage_column(file: Path, row_group: int, column: int) -> None:
    """Overwrite a column's bytes in one row group of a Parquet file; its footer stays sound."""
    chunk = pq.ParquetFile(file).metadata.row_group(row_group).column(column)
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        start = chunk.dictionary_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)
