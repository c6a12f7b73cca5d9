"""The unified model as a model of VLMEvalKit, by its documented `BaseModel` with `generate_inner`.

VLMEvalKit has no entry points. A script of one's own registers the model, and runs its `run.py`:

    from dualtoken.pipelines.evaluation.adapters.vlmeval_model import register
    register("data/models/mllm/…")
"""

from collections.abc import Mapping, Sequence
from functools import partial

from vlmeval.config import supported_VLM  # pyright: ignore[reportMissingImports]
from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

from dualtoken.model.vision.image_files import open_image
from dualtoken.pipelines.evaluation.adapters.answering import Prompt, answers
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.inference.unified import open_model


class DualToken(BaseModel):
    """A saved unified model."""

    INTERLEAVE = True
    """Whether messages may have several images: they come before the texts."""
    allowed_types = ("text", "image")
    """Kinds of a message's parts."""

    def __init__(self, model_path: str, max_new_tokens: int = 64) -> None:
        super().__init__()
        self._opened = open_model(model_path)
        self._max_new_tokens = max_new_tokens

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """Return the likeliest answer to a message of parts `{"type": "image" | "text", "value": …}`.

        The value of an image is its file. Raises `ImageFileError` for one that gives no picture.
        """
        del dataset  # every benchmark is asked alike
        images = [open_image(part["value"], decode=decode_rgb) for part in message if part["type"] == "image"]
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        [answer] = answers(
            self._opened, [Prompt(text, tuple(images))], 1, max_new_tokens=self._max_new_tokens
        )
        return answer


def register(model_path: str, name: str = "dualtoken") -> None:
    """Add a saved model to those that VLMEvalKit knows by name."""
    supported_VLM[name] = partial(DualToken, model_path=model_path)
