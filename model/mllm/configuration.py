"""Configuration of the unified model in Hugging Face's form, as config.json of a saved folder holds it."""

from collections.abc import Sequence
from typing import Any

from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.model.config.mllm import MODEL_TYPE, STREAM_NAMES, DepthHeadConfig
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import CONFIG_MAPPING, PretrainedConfig


class DualTokenMllmConfig(PretrainedConfig):
    """Shapes of the trunk, of the heads, and of the codes that the model reads and draws."""

    model_type = MODEL_TYPE
    sub_configs = {"text_config": PretrainedConfig}  # noqa: RUF012  # pyright: ignore  (transformers' own form)

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        head: dict[str, Any] | None = None,
        inputs: Sequence[str] = STREAM_NAMES,
        targets: Sequence[str] = STREAM_NAMES,
        visual_position: str = "none",
        drawing: dict[str, Any] | None = None,
        grid: Sequence[int] = (1, 1),
        depth: int = 1,
        num_codes: dict[str, int] | None = None,
        num_codebooks: dict[str, int] | None = None,
        code_width: dict[str, int] | None = None,
        vision_tokenizer: str = "",
        image_token_id: int = 0,
        image_start_id: int = 0,
        image_end_id: int = 0,
        turn_end_ids: Sequence[int] = (),
        tie_word_embeddings: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Describe a model.

        `grid` (H, W) and `depth` are those of an image's codes; `num_codes`, `num_codebooks` and `code_width`
        are by stream. `drawing` says how images are drawn where nothing else is said. `vision_tokenizer` is
        the SHA-256 of the tokenizer's weights: codes of another one mean other things.
        """
        if text_config is None:
            text_config = {"model_type": "qwen2"}
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = text_config
        self.head = head or DepthHeadConfig().model_dump()
        self.inputs = list(inputs)
        self.targets = list(targets)
        self.visual_position = visual_position
        self.drawing = drawing or DrawingConfig().model_dump()
        self.grid = list(grid)
        self.depth = depth
        self.num_codes = num_codes or dict.fromkeys(STREAM_NAMES, 2)
        self.num_codebooks = num_codebooks or dict.fromkeys(STREAM_NAMES, 1)
        self.code_width = code_width or dict.fromkeys(STREAM_NAMES, 1)
        self.vision_tokenizer = vision_tokenizer
        self.image_token_id = image_token_id
        self.image_start_id = image_start_id
        self.image_end_id = image_end_id
        self.turn_end_ids = list(turn_end_ids)
        super().__init__(**options, tie_word_embeddings=tie_word_embeddings)  # pyright: ignore[reportCallIssue]

    @property
    def image_positions(self) -> int:
        """Positions of an image."""
        height, width = self.grid
        return height * width

    @property
    def head_config(self) -> DepthHeadConfig:
        """Shape of the depth heads."""
        return DepthHeadConfig.model_validate(self.head)

    @property
    def drawing_config(self) -> DrawingConfig:
        """How captions are drawn where nothing else is said."""
        return DrawingConfig.model_validate(self.drawing)

    def get_text_config(self, *_arguments: Any, **_options: Any) -> PretrainedConfig:  # noqa: ANN401
        """Return the trunk's configuration, which caches and generation ask for."""
        return self.text_config
