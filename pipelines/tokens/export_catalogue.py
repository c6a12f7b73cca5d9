"""The formats that token datasets are exported to: each one's writer, and where its readers find what.

EXPORTS.md says the same for people.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dualtoken.pipelines.tokens.export_description import Description, Shape
from dualtoken.pipelines.tokens.export_formats import (
    FormatWriter,
    HuggingFaceWriter,
    Open,
    ParquetWriter,
    WebDatasetWriter,
)
from dualtoken.pipelines.tokens.export_megatron import MegatronWriter, megatron_layout

_COLUMNS = {"key": "column `key`", "caption": "column `caption`", "meta": "the other columns"}


class Format(NamedTuple):
    """A format of exports."""

    writer: Callable[[Open, Shape, Description], FormatWriter]
    row_places: dict[str, str]
    """Where a row's key, caption and other columns stand."""
    code_place: str
    """Where its codes stand, with `{stream}` for the stream's name."""
    layout: Callable[[Shape, int], dict[str, Any]]
    """What else a reader must know, of a shape and the first id."""

    def places(self, streams: Sequence[str]) -> dict[str, str]:
        """Return where each part of a row stands."""
        codes = {stream: self.code_place.format(stream=stream) for stream in streams}
        return self.row_places | codes


def _grid_layout(shape: Shape, first_id: int) -> dict[str, Any]:
    del first_id
    return {"dtype": "uint16", "shape": [*shape.grid, shape.depth], "axes": "row, column, depth"}


def _flat_layout(shape: Shape, first_id: int) -> dict[str, Any]:
    del first_id
    whole = [*shape.grid, shape.depth]
    return {
        "dtype": "uint16",
        "shape": [shape.codes_per_row],
        "reshape_to": whole,
        "axes": "row, column, depth",
    }


FORMATS: dict[str, Format] = {
    "webdataset": Format(
        WebDatasetWriter,
        {"key": "`key` of `.json`", "caption": "`.txt`", "meta": "the other fields of `.json`"},
        "`.{stream}.npy`",
        _grid_layout,
    ),
    "parquet": Format(ParquetWriter, _COLUMNS, "column `{stream}`", _flat_layout),
    "hf": Format(HuggingFaceWriter, _COLUMNS, "column `{stream}`", _flat_layout),
    "megatron": Format(
        MegatronWriter,
        {name: f"`tokens.parquet`, {place}" for name, place in _COLUMNS.items()},
        "`tokens.bin`, the positions of each sequence that `layout` names for {stream}",
        megatron_layout,
    ),
}
