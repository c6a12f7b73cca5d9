"""What a saved model's folder holds: a tokenizer, or a unified model with its own tokenizer in it.

Imports neither torch nor transformers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dualtoken.infra.digests import digest
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.config.mllm import MODEL_TYPE
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.hub.model_name import CONFIG, VISION_FOLDER
from dualtoken.pipelines.config.evaluation import UNIFIED_METRICS
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, StageRecord, hash_lines
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import CARD

_NO_MODEL = (STAGE_FILE, MANIFEST_FILE, CARD)
"""Files of a trained model's folder that do not decide what it computes."""
_TEACHER = "teacher"
_TOKENIZER = "train"
"""Inputs of trainings: a tokenizer's reads its teacher, a unified model's its tokenizer."""


class SavedSubject(NamedTuple):
    """A saved model."""

    kind: Literal["tokenizer", "mllm"]
    tokenizer: Store
    """Folder of the tokenizer: a unified model's own lies in its folder."""
    targets: tuple[str, ...] = ()
    """Streams of codes that a unified model predicts."""


def read_subject(folder: Store) -> SavedSubject:
    """Tell what a folder holds; raises `UserError` where it has no config.json."""
    values = _config(folder)
    if values.get("model_type") != MODEL_TYPE:
        return SavedSubject("tokenizer", folder)
    return SavedSubject("mllm", folder.at(VISION_FOLDER), tuple(values.get("targets", ())))


def _config(folder: Store) -> dict[str, Any]:
    if not folder.exists(CONFIG):
        raise UserError(f"{folder.url} has no {CONFIG}: name the folder of a saved model")
    with scratch_folder() as scratch:
        try:
            return read_json(folder.local_copy(CONFIG, Path(scratch)))
        except ValueError as error:
            raise UserError(str(error)) from None


def local_tokenizer(folder: Path) -> Path:
    """Return the tokenizer's folder of a local copy of a saved model."""
    vision = folder / VISION_FOLDER
    return vision if vision.is_dir() else folder


def model_digest(folder: Store) -> str:
    """Return a hash over the names and contents of a model's files."""
    lines: list[bytes] = []
    with scratch_folder() as scratch:
        for name in _model_files(folder):
            lines.append(f"{name} {digest(folder.local_copy(name, Path(scratch))).sha256}\n".encode())
    return hash_lines(lines)


def _model_files(folder: Store) -> Iterator[str]:
    for name, _ in folder.files():
        place, _, file = name.rpartition("/")
        if place in ("", VISION_FOLDER) and not file.startswith(".") and file not in _NO_MODEL:
            yield name


def teacher_of(training: Store) -> Store | None:
    """Return the teacher that a training's tokenizer learned from.

    None where the folder is no training's, or the teacher is not where it was, as after a run was moved.
    """
    if not training.exists(STAGE_FILE):
        return None
    inputs = StageRecord.read(training, STAGE_FILE).inputs
    if _TEACHER in inputs:
        teacher = Store(inputs[_TEACHER])
        return teacher if any(True for _ in teacher.files()) else None
    return teacher_of(Store(inputs[_TOKENIZER])) if _TOKENIZER in inputs else None


def require_kind(subject: SavedSubject, name: str, protocol: str, metrics: Sequence[str]) -> None:
    """Raise `UserError` where a metric is of unified models and the subject is none, or cannot draw."""
    for metric in metrics:
        if metric not in UNIFIED_METRICS:
            continue
        if subject.kind != "mllm":
            raise UserError(
                f"protocols.{protocol}.metrics: {metric} needs a unified model, and {name} is a tokenizer: "
                "evaluate a folder such as data/models/mllm/…, a recipe with --stage mllm, or leave the "
                "metric out"
            )
        if metric.startswith("drawn_") and "pixel" not in subject.targets:
            raise UserError(
                f"protocols.{protocol}.metrics: {metric} needs drawings, and {name} predicts "
                f"{', '.join(subject.targets) or 'text alone'}: leave the metric out"
            )
