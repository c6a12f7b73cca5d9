"""The recipe's `mllm` key: training of the unified model on a run's tokens; imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dualtoken.model.config.base import (
    Config,
    Location,
    PositiveInt,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)
from dualtoken.model.config.mllm import MllmTrainingConfig, TrunkShape
from dualtoken.pipelines.config.engine import EngineConfig
from dualtoken.pipelines.config.train import DataParallelConfig

DocumentName = Literal["draw", "describe", "answer", "text"]
"""What a document teaches: to draw a caption's image, to describe an image, to answer questions about one, or
text alone."""


def _some_share(shares: dict[DocumentName, float]) -> dict[DocumentName, float]:
    if not sum(shares.values()):
        raise ValueError("no kind of document has a share over 0: give one that is to be made")
    return shares


class DocumentsConfig(Config):
    """Documents that samples are made into, one each time that a sample comes."""

    shares: Annotated[dict[DocumentName, Annotated[float, Field(ge=0)]], AfterValidator(_some_share)] = Field(
        default={"draw": 0.5, "describe": 0.5}
    )
    """Share of each kind, in any unit; a kind that is not named has none."""
    questions: str | None = None
    """Column of the corpora with questions, a JSON list of objects with `question` and `answer`."""
    max_turns: PositiveInt | None = None
    """Most questions of a document, chosen anew each time; by default all."""
    turns_apart: bool = in_fingerprint_unless_default(default=False)
    """Whether each question of a document sees the image and not the other questions, as if it were asked
    alone. A model that is to answer single questions learns them sooner so: it can take no answer from a
    question before. One that is to hold conversations has to see them."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the documents to draw that come without their caption: what guidance draws against."""
    learn_prompts: bool = False
    """Whether captions that are to be drawn are learnt as text, too."""
    learn_read_images: bool = False
    """Whether the codes of images that come before text are learnt, too."""
    pool_size: PositiveInt = not_in_fingerprint(default=512)
    """Documents that wait for a sequence that they fill."""

    @model_validator(mode="after")
    def _turns_are_somewhere(self) -> "DocumentsConfig":
        if self.turns_apart and not self.shares.get("answer"):
            raise ValueError(
                "turns_apart=true without shares.answer: give it a share, or leave turns_apart out"
            )
        return self

    @model_validator(mode="after")
    def _questions_are_somewhere(self) -> "DocumentsConfig":
        if self.shares.get("answer") and self.questions is None:
            raise ValueError(
                f"shares.answer={self.shares['answer']:g} without questions: name the column that has them"
            )
        return self


# Collected in reversed order: workers, then the training, then what is read.
class MllmStageConfig(MllmTrainingConfig, DataParallelConfig, EngineConfig):
    """Training of the unified model with Ray Train."""

    documents: DocumentsConfig = DocumentsConfig()
    """What samples are made into."""
    start_from: Location | None = None
    """Folder of a trained model of the same shape whose weights this training begins with, such as that of
    the phase before."""

    @model_validator(mode="after")
    def _adapters_have_a_trained_trunk(self) -> "MllmStageConfig":
        if self.lora is not None and isinstance(self.trunk, TrunkShape) and self.start_from is None:
            raise ValueError(
                "lora adapts a trained trunk, this one starts from nothing: set trunk.kind=pretrained or "
                "start_from, or lora=null"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the model; where the weights come from counts by their content."""
        values = super().identity()
        values.pop("start_from", None)
        return values
