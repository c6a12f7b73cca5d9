"""The model whose meaning the tokenizer keeps, and what it is asked for; imports neither torch nor ray."""

from typing import Literal

from dualtoken.model.config.base import Config, Location, PositiveInt, not_in_fingerprint
from dualtoken.model.config.teacher import TeacherTrainingConfig


class _TrainedKind(Config):
    """The tag of `TrainedTeacher`."""

    kind: Literal["train"]


# The last base comes first, so that `kind` is the first key of fingerprints and of the report.
class TrainedTeacher(TeacherTrainingConfig, _TrainedKind):
    """A small SigLIP-style model that the recipe trains on the corpora's captions, where no weights can be had."""


class OpenClipTeacher(Config):
    """A model that open_clip knows by name, with weights from its hub."""

    kind: Literal["open_clip"]
    model: str
    """Such as ViT-SO400M-14-SigLIP2-378."""
    pretrained: str
    """Its tag, such as webli."""


class LocalTeacher(Config):
    """An open_clip checkpoint on disk: a folder with open_clip_config.json and open_clip_model.safetensors."""

    kind: Literal["local"]
    folder: Location


class TargetsConfig(Config):
    """What the teacher says of each kept sample, computed once."""

    dense: bool = True
    """Also the tokens of the semantic block, float16; without them, training runs the teacher itself."""
    dense_budget_gb: float = not_in_fingerprint(default=50.0, gt=0)
    """Refuse to write more dense targets than this per corpus."""
    batch_size: PositiveInt = 64
