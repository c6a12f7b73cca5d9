"""A tokenizer on image files, outside any run: files to codes, files to pictures of what the codes keep.

A file that gives no picture is told of in one line and passed over; the others are still done.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dualtoken.model.hub.saved_model import find_folder, fingerprint, write_safetensors
from dualtoken.model.metrics.reconstruction import psnr_per_image
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer
from dualtoken.model.tokenizer.model_card import bits_per_image
from dualtoken.model.vision.image_files import SUFFIXES, ImageFileError, find_images, open_image
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import UserError

CODES_FORMAT, CODES_VERSION = "dualtoken-codes", 1
PrintLine = Callable[[str], None]


class Done(NamedTuple):
    """How a command went."""

    images: int
    bad: int
    """Files, or folders, that gave no picture."""


class Model(NamedTuple):
    """A tokenizer and where it was found."""

    folder: Path
    network: DualTokenizer

    def encode(self, levels: torch.Tensor) -> Codes:
        """Return the codes of pictures as the network sees them, uint8 (B, 3, S, S)."""
        return self.network.encode(self.network.transform.normalize(levels))


def open_model(name: str) -> Model:
    """Open a folder of `save_pretrained` or a hub repository, on the GPU if there is one. Raises `UserError` if it is neither."""
    forbid_tf32()
    try:
        folder = find_folder(name)
        return Model(
            folder, DualTokenizer.from_pretrained(folder, "cuda" if torch.cuda.is_available() else "cpu")
        )
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


class _Pictures:
    """Reads files one batch at a time, and counts those that give no picture."""

    def __init__(self, model: Model, paths: Sequence[str], complain: PrintLine) -> None:
        self._network, self._paths, self._complain, self.bad = model.network, paths, complain, 0

    def batches(self, size: int) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield the files' names, as they were given or found, and their pictures as the network sees them, uint8 (B, 3, S, S)."""
        device = next(self._network.parameters()).device
        for batch in _batched(self._each(), size):
            yield [name for name, _ in batch], torch.cat([levels for _, levels in batch]).to(device)

    def _each(self) -> Iterator[tuple[str, torch.Tensor]]:
        for found in find_images(self._paths):
            try:
                if isinstance(found, ImageFileError):
                    raise found
                # Brought to the network's size one at a time: a batch of large pictures would take gigabytes.
                yield str(found), self._network.transform.levels([open_image(found)])
            except ImageFileError as problem:
                self.bad += 1
                self._complain(str(problem))


def tokenize_files(
    model: Model, paths: Sequence[str], out: Path, batch_size: int, complain: PrintLine
) -> Done:
    """Write both streams' codes of image files into one safetensors file, as uint16 (B, H, W, D), names in its metadata."""
    pictures, names = _Pictures(model, paths, complain), []
    streams: dict[str, list[torch.Tensor]] = {"semantic": [], "pixel": []}
    for some, levels in pictures.batches(batch_size):
        names += some
        for stream, ids in model.encode(levels)._asdict().items():
            streams[stream].append(ids.to(torch.uint16).cpu())
    if names:
        write_safetensors(
            {stream: torch.cat(parts) for stream, parts in streams.items()},
            out,
            {"dualtoken": _said(model, names)},
        )
    return Done(len(names), pictures.bad)


def _said(model: Model, names: list[str]) -> str:
    """Return the file's metadata as one JSON text: safetensors keeps no order between several."""
    transform = model.network.transform.model_dump(mode="json")
    said = {"format": CODES_FORMAT, "format_version": CODES_VERSION, "tokenizer": fingerprint(model.folder)}
    return json.dumps(said | {"transform": transform, "names": names})


def reconstruct_files(
    model: Model, paths: Sequence[str], out: Path, batch_size: int, print_line: PrintLine, complain: PrintLine
) -> Done:
    """Write a PNG per image file, what the tokenizer sees beside what its pixel codes say, and tell each one's PSNR."""
    pictures, ratios, taken = _Pictures(model, paths, complain), [], set()
    out.mkdir(parents=True, exist_ok=True)
    for names, seen in pictures.batches(batch_size):
        shown = model.network.transform.to_uint8(model.network.decode(model.encode(seen).pixel))
        both = torch.cat([seen, shown], dim=3).permute(0, 2, 3, 1).cpu().numpy()
        for name, pair, ratio in zip(
            names, both, psnr_per_image(shown, seen).reshape(-1).tolist(), strict=True
        ):
            file = out / _png_name(name, taken)
            Image.fromarray(pair).save(file)
            print_line(f"{name}: {ratio:.2f} dB, {file}")
            ratios.append(ratio)
    if ratios:
        config = model.network.config
        bits = bits_per_image(config.pixel, config.grid_size) / config.image_size**2
        print_line(
            f"{pluralized(len(ratios), 'image')}, mean PSNR {np.mean(ratios):.2f} dB at {bits:.4f} bits of pixel codes per pixel, in {out}"
        )
    return Done(len(ratios), pictures.bad)


def _png_name(name: str, taken: set[str]) -> str:
    """Return a name of its own for an image's PNG: folders become part of it, so that two a.jpg do not meet."""
    path = Path(name)
    whole = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    base = "_".join(part for part in whole.parts if part not in {"/", "..", "."})
    chosen, number = f"{base}.png", 2
    while chosen in taken:
        chosen, number = f"{base}-{number}.png", number + 1
    taken.add(chosen)
    return chosen


def _batched(
    items: Iterator[tuple[str, torch.Tensor]], size: int
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
