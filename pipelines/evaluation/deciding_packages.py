"""Versions of the packages that decide an evaluation's numbers; imports none of them.

Most of them the canary vouches for: whatever changes a number changes its bits too. It has nothing to say of
packages that read text in images, since an untrained tokenizer's pictures have none. A night that others read
is told by their versions alone.
"""

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dualtoken.pipelines.config.evaluation import UNIFIED_METRICS, EvaluationProtocol
from dualtoken.pipelines.evaluation.metric_catalogue import needs_teacher

ALWAYS = ("torch", "torchvision", "pillow", "numpy", "scipy", "pyarrow", "open_clip_torch", "timm", "ray")
_TEXT_READER = "rapidocr"
"""Package whose models read text."""
TEXT_READERS = (
    _TEXT_READER,
    "onnxruntime",
    "opencv-python",
    "opencv-python-headless",
    "pyclipper",
    "shapely",
)
"""Packages that `text_kept` depends on."""
_PERCEPTUAL = ("torchmetrics",)
"""What ships the weights on top of the networks of `lpips` and `dists`."""
_LANGUAGE = ("transformers", "tokenizers")
"""What runs unified models, and splits the texts of some teachers."""
_FIDELITY = ("torch-fidelity",)
"""What has the Inception of `fd` whose file is torch-fidelity's."""


def deciding_packages(
    protocols: Iterable[tuple[EvaluationProtocol, Mapping[str, Any]]],
) -> dict[str, str]:
    """Return the versions of the installed packages that decide the numbers of protocols.

    Each protocol is given with its content, which has the digests of a text reader's models: they come with a
    package, and stand below its name.
    """
    names: list[str] = list(ALWAYS)
    models: dict[str, str] = {}
    for protocol, content in protocols:
        names += _optional(protocol)
        for file, sha256 in content.get("weights", {}).get("text_reader", {}).items():
            models[f"{_TEXT_READER}/{file}"] = sha256[:12]
    return dict(_installed(dict.fromkeys(names))) | models


def other_text_reader(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Return what of the reading of text differs between two nights' packages; None where nothing does.

    A night without `text_kept` has no such packages, and differs from none.
    """
    first = _of_text(before)
    second = _of_text(after)
    if not first or not second:
        return None
    for name in sorted(first.keys() | second.keys()):
        old, new = first.get(name, "none"), second.get(name, "none")
        if old != new:
            return f"{name} {old} to {new}"
    return None


def _optional(protocol: EvaluationProtocol) -> Iterator[str]:
    metrics = set(protocol.metrics)
    if "text_kept" in metrics:
        yield from TEXT_READERS
    if metrics & {"lpips", "dists"}:
        yield from _PERCEPTUAL
    if metrics & set(UNIFIED_METRICS) or needs_teacher(protocol):
        yield from _LANGUAGE
    if "fd" in metrics and protocol.features is not None and protocol.features.kind == "torch_fidelity":
        yield from _FIDELITY


def _installed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _of_text(packages: Mapping[str, str]) -> dict[str, str]:
    return {name: version for name, version in packages.items() if name.partition("/")[0] in TEXT_READERS}
