"""The teacher of a recipe, and the targets that it computes; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field

from dualtoken.model.config.base import Config, Location, PositiveInt, not_in_fingerprint
from dualtoken.model.config.teacher import TeacherTrainingConfig


class _TrainedKind(Config):
    """The tag of `TrainedTeacher`."""

    kind: Literal["train"]


# The last base comes first, so that `kind` is the first key of fingerprints and of the report.
class TrainedTeacher(TeacherTrainingConfig, _TrainedKind):
    """A small SigLIP-style model, trained on the corpora's captions, where no weights can be had."""


class OpenClipTeacher(Config):
    """A model that open_clip knows by name, with weights from its hub."""

    kind: Literal["open_clip"]
    model: Annotated[str, Field(pattern=r"^[^:]*$")]
    """Name of the model, such as ViT-SO400M-14-SigLIP2-378; a folder or repository is none."""
    pretrained: str
    """Tag of the weights, such as webli."""


class LocalTeacher(Config):
    """An open_clip checkpoint on disk: open_clip_config.json and open_clip_model.safetensors."""

    kind: Literal["local"]
    folder: Location
    """Folder of the checkpoint."""


class TargetsConfig(Config):
    """Targets of each kept sample: what the teacher gives for it, computed once."""

    dense: bool = True
    """Store the tokens of the semantic block too, float16; without them, training runs the teacher itself."""
    dense_budget_gb: float = not_in_fingerprint(default=50.0, gt=0)
    """Largest size of dense targets per corpus, GB; a run that would write more is refused."""
    batch_size: PositiveInt = 64
    """Images per pass of the teacher."""
