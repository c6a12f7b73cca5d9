"""The teacher of a recipe, and the targets that it computes; imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import (
    Config,
    Location,
    PositiveInt,
    Precision,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)
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


TargetsMode = Literal["online", "pooled", "dense_float16", "dense_int8"]
"""Where training takes the teacher's targets from."""
StoredTargets = Literal["pooled", "dense_float16", "dense_int8"]
"""What a target file holds."""


class TargetsConfig(Config):
    """Targets of each kept sample: what the teacher gives for it, computed once, or anew in each step."""

    dense: bool = True
    """Store the tokens of the semantic block too; without them, training runs the teacher itself.

    An older key: `true` is `mode: dense_float16`, and `false` stores the pooled output, which training does
    not read.
    """
    mode: TargetsMode | None = in_fingerprint_unless_default(default=None)
    """What is stored; by default what `dense` says.

    `online`: nothing, training runs the teacher. `pooled`: its pooled output alone, for trainings with
    `losses.semantic: 0`. `dense_float16`: the semantic block's tokens too. `dense_int8`: these in half of the
    bytes, with a scale per token.
    """
    dense_budget_gb: float = not_in_fingerprint(default=50.0, gt=0)
    """Largest size of dense targets per corpus, GB; a run that would write more is refused."""
    batch_size: PositiveInt = 64
    """Images per pass of the teacher."""
    precision: Precision = in_fingerprint_unless_default(default="float32")
    """Precision of the teacher's image tower for what is stored; bfloat16 is faster where hardware has it."""

    @model_validator(mode="before")
    @classmethod
    def _dense_follows_mode(cls, values: Any) -> Any:  # noqa: ANN401
        if not isinstance(values, dict):
            return values
        mode = values.get("mode")
        if not isinstance(mode, str):
            return values
        dense = mode.startswith("dense")
        if values.get("dense", dense) != dense:
            raise ValueError(
                f"mode={mode} and dense={str(values['dense']).lower()} differ: leave out dense, the older key"
            )
        return values | {"dense": dense}

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the output, without a mode where `dense` alone says the same."""
        values = super().identity()
        if self.mode == "dense_float16":
            del values["mode"]
        return values

    @property
    def stored(self) -> StoredTargets | None:
        """What the targets stage stores; None where it does not run."""
        if self.mode == "online":
            return None
        if self.mode is not None:
            return self.mode
        return "dense_float16" if self.dense else "pooled"

    @property
    def read_by_training(self) -> bool:
        """Whether training reads what is stored, and has no teacher beside it."""
        return self.dense or self.mode == "pooled"
