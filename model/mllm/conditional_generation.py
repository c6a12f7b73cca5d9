"""The unified model as transformers knows it, with one `generate` for text and for images."""

from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from dualtoken.model.mllm.generation import generate_images
from dualtoken.model.mllm.modeling import UnifiedModel


class DualTokenForConditionalGeneration(UnifiedModel):
    """Answers questions about images, and draws them, by one stream of positions."""

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        *,
        generation_mode: Literal["text", "image"] = "text",
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Continue prompts with text, as transformers' own `generate`, or with an image each.

        For images the prompts end with the mark of an image's start, and the options are those of
        `generation.generate_images`, which returns the codes of each stream, (B, N, D).
        """
        if generation_mode == "text":
            return super().generate(input_ids, **options)  # pyright: ignore[reportAttributeAccessIssue]
        assert input_ids is not None, "images are drawn for prompts"
        return generate_images(self, input_ids, **options)
