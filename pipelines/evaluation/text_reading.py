"""How much of the text in images can still be read in their reconstructions, by OCR.

RapidOCR runs PP-OCRv6 in ONNX Runtime, on the CPU. It reads lines from top to bottom and from left to right;
blanks are dropped, since where a line is cut into parts decides them. The models come with the package, and
nothing is downloaded.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dualtoken.infra.digests import digest
from dualtoken.pipelines.errors import UserError

_PACKAGES = ("rapidocr", "onnxruntime")
_MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}
"""Files by RapidOCR's names of its three steps: where text is, which way up it stands, what it says."""


class TextReader:
    """Reads the text in pictures."""

    def __init__(self) -> None:
        models = _models()
        # OpenCV and ONNX Runtime take a second, which other metrics need not wait for.
        from rapidocr import RapidOCR  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        settings: dict[str, Any] = {
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
        settings |= {f"{step}.model_path": str(file) for step, file in models.items()}
        self._read = RapidOCR(params=settings)

    def text(self, picture: Image.Image) -> str:
        """Return all text of a picture without its blanks; empty where there is none."""
        lines = self._read(picture).txts or ()
        return "".join("".join(lines).split())

    def share_kept(self, picture: Image.Image, original: Image.Image) -> float:
        """Return the share of an original's characters that are read in a picture too, in their order.

        NaN where no text is read in the original.
        """
        expected = self.text(original)
        if not expected:
            return float("nan")
        return longest_common_subsequence(expected, self.text(picture)) / len(expected)


def longest_common_subsequence(first: str, second: str) -> int:
    """Return how many characters two texts share in the same order.

    By whole rows of bits: Hyyrö, "Bit-Parallel LCS-length Computation Revisited" (2004).
    """
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    every_place = (1 << len(first)) - 1
    unmatched = every_place
    for character in second:
        matches = unmatched & places.get(character, 0)
        unmatched = (unmatched + matches | unmatched - matches) & every_place
    return len(first) - unmatched.bit_count()


def reader_digests() -> dict[str, str]:
    """Return the SHA-256 of the models that read, by their files' names; raises `UserError` without them."""
    return {file.name: digest(file).sha256 for file in _models().values()}


def _models() -> dict[str, Path]:
    """Return the models' files by step; raises `UserError` where a package or a file is missing."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"protocols: text_kept needs the package {package}: pip install '.[ocr]' in the project's "
                "folder, or leave the metric out"
            )
    package = importlib.util.find_spec("rapidocr")
    assert package is not None
    assert package.origin is not None, "rapidocr is a folder with code"
    files = {step: Path(package.origin).with_name("models") / name for step, name in _MODELS.items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"protocols: text_kept needs {file}, which this version of rapidocr lacks: "
                "pip install '.[ocr]' in the project's folder"
            )
    return files
