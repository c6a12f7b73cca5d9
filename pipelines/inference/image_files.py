"""Runs a tokenizer on image files, outside any pipeline: files to codes, files to reconstructions.

A file that gives no picture is named in one line and passed over; the others are still processed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.model.hub.saved_model import find_folder, fingerprint, write_safetensors
from dualtoken.model.metrics.reconstruction import psnr_per_image
from dualtoken.model.tokenizer.model_card import bits_per_image
from dualtoken.model.vision.formats import SUFFIXES
from dualtoken.model.vision.image_files import ImageFileError, find_images, open_image
from dualtoken.pipelines.core.messages import pluralized, printable
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.inference.networks import Array, TokenizerRunner, best_device, prepare_process

CODES_FORMAT = "dualtoken-codes"
CODES_VERSION = 1
PrintLine = Callable[[str], None]


class FileCounts(NamedTuple):
    """Counts of files that a command processed, and of those it passed over."""

    images: int
    bad: int
    """Files, or folders, that gave no picture."""


def open_model(name: str) -> TokenizerRunner:
    """Open a folder of `save_pretrained` or a hub repository, on the GPU if there is one.

    For a command that has the process to itself: forbids TF32 in it. Raises `UserError` if it is neither.
    """
    prepare_process(threads=None)
    try:
        return TokenizerRunner(find_folder(name), best_device())
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


class _NamedLevels(NamedTuple):
    """A picture as the network sees it."""

    name: str
    """The file, as it was given or found."""
    levels: UInt8[Tensor, "1 3 S S"]


class _PictureReader:
    """Reads files one batch at a time, and counts those that give no picture."""

    def __init__(self, tokenizer: TokenizerRunner, paths: Sequence[str], complain: PrintLine) -> None:
        self._tokenizer = tokenizer
        self._paths = paths
        self._complain = complain
        self.bad = 0

    def batches(self, size: int) -> Iterator[tuple[list[str], UInt8[Tensor, "B 3 S S"]]]:
        """Yield the names of up to `size` files and their pictures, on the network's device."""
        batch: list[_NamedLevels] = []
        for picture in self._pictures():
            batch.append(picture)
            if len(batch) == size:
                yield self._joined(batch)
                batch = []
        if batch:
            yield self._joined(batch)

    def _joined(self, batch: Sequence[_NamedLevels]) -> tuple[list[str], UInt8[Tensor, "B 3 S S"]]:
        names = [picture.name for picture in batch]
        levels = torch.cat([picture.levels for picture in batch])
        return names, levels.to(self._tokenizer.device)

    def _pictures(self) -> Iterator[_NamedLevels]:
        for found in find_images(self._paths):
            if isinstance(found, ImageFileError):
                self._pass_over(found)
                continue
            try:
                picture = open_image(found, decode=decode_rgb)
            except ImageFileError as problem:
                if is_machine_trouble(problem):
                    raise
                self._pass_over(problem)
                continue
            # Brought to the network's size one at a time: a batch of large pictures would take gigabytes.
            yield _NamedLevels(str(found), self._tokenizer.network.transform.levels([picture]))

    def _pass_over(self, problem: ImageFileError) -> None:
        self.bad += 1
        self._complain(str(problem))


def tokenize_files(
    tokenizer: TokenizerRunner, paths: Sequence[str], out: Path, batch_size: int, complain: PrintLine
) -> FileCounts:
    """Write both streams' codes of image files into one safetensors file, as uint16 (B, H, W, D).

    The files' names are in its metadata. Nothing is written where no file gives a picture.
    """
    reader = _PictureReader(tokenizer, paths, complain)
    names: list[str] = []
    semantic: list[Array] = []
    pixel: list[Array] = []
    for batch_names, levels in reader.batches(batch_size):
        codes = tokenizer.encode_levels(levels)
        names += batch_names
        semantic.append(codes.semantic)
        pixel.append(codes.pixel)
    if names:
        streams = {
            "semantic": torch.from_numpy(np.concatenate(semantic)),
            "pixel": torch.from_numpy(np.concatenate(pixel)),
        }
        write_safetensors(streams, out, {"dualtoken": _codes_metadata(tokenizer, names)})
    return FileCounts(len(names), reader.bad)


def _codes_metadata(tokenizer: TokenizerRunner, names: list[str]) -> str:
    """Return the metadata of a file of codes as one JSON text: safetensors keeps no order between several."""
    metadata = {
        "format": CODES_FORMAT,
        "format_version": CODES_VERSION,
        "tokenizer": fingerprint(tokenizer.folder),
        "transform": tokenizer.network.transform.model_dump(mode="json"),
        "names": [printable(name) for name in names],
    }
    return json.dumps(metadata)


def reconstruct_files(
    tokenizer: TokenizerRunner,
    paths: Sequence[str],
    out: Path,
    batch_size: int,
    print_line: PrintLine,
    complain: PrintLine,
) -> FileCounts:
    """Write a PNG per image file, the network's view of it beside its reconstruction, and print the PSNR."""
    reader = _PictureReader(tokenizer, paths, complain)
    ratios: list[float] = []
    taken_names: set[str] = set()
    out.mkdir(parents=True, exist_ok=True)
    for names, originals in reader.batches(batch_size):
        reconstructions = tokenizer.decode(tokenizer.encode_levels(originals).pixel)
        pairs = torch.cat([originals, reconstructions], dim=3).permute(0, 2, 3, 1).cpu().numpy()
        batch_ratios = psnr_per_image(reconstructions, originals).reshape(-1).tolist()
        for name, pair, ratio in zip(names, pairs, batch_ratios, strict=True):
            file = out / _png_name(name, taken_names)
            Image.fromarray(pair).save(file)
            print_line(f"{name}: {ratio:.2f} dB, {file}")
        ratios += batch_ratios
    if ratios:
        config = tokenizer.config
        bits = bits_per_image(config.pixel, config.grid_size) / config.image_size**2
        print_line(
            f"{pluralized(len(ratios), 'image')}, mean PSNR {np.mean(ratios):.2f} dB "
            f"at {bits:.4f} bits of pixel codes per pixel, in {out}"
        )
    return FileCounts(len(ratios), reader.bad)


def _png_name(name: str, taken_names: set[str]) -> str:
    """Return a PNG's name for an image, and add it to those taken.

    Folders become part of the name, so that two a.jpg do not meet.
    """
    path = Path(name)
    if path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    base = "_".join(part for part in path.parts if part not in {"/", "..", "."})
    chosen = f"{base}.png"
    number = 2
    while chosen in taken_names:
        chosen = f"{base}-{number}.png"
        number += 1
    taken_names.add(chosen)
    return chosen
