"""The unified model: a causal language model that reads both streams' codes at each image position.

Source: DualToken, arXiv 2503.14324, section 3.3. One position stands for one image token; the projector reads
the code vectors of the streams, each summed over depth. Text is predicted by the trunk's own head, codes by
the depth heads from the state before their position.

B sequences of T positions, V image positions among them, N positions of an image, D depths, H channels of the
trunk.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from dualtoken.model.mllm.attention import PACKED_SDPA, unmasked
from dualtoken.model.mllm.code_vectors import CodeVectors, VisualProjector
from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.mllm.depth_heads import DepthHead
from dualtoken.model.mllm.segments import Segments
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast


class GridPositions(nn.Module):
    """A vector for each row and one for each column of an image's grid; a position has the sum of its two.

    A side of the image is then a matter of one of them, which a trunk from nothing learns sooner than a
    vector of each position.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(height, channels)
        self.columns = nn.Embedding(width, channels)

    def forward(self, places: Int[Tensor, "V"]) -> Float[Tensor, "V H"]:
        """Return the vectors of positions by their places in raster order."""
        width = self.columns.num_embeddings
        return self.rows(places // width) + self.columns(places % width)


class DualTokenMllmModel(nn.Module):
    """Trunk and projector: from ids and codes to states."""

    def __init__(self, config: DualTokenMllmConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text_config
        self.language_model = AutoModel.from_config(text, attn_implementation=PACKED_SDPA)
        self.codebooks = nn.ModuleDict()
        for stream, num_codes in config.num_codes.items():
            self.codebooks[stream] = CodeVectors(
                config.num_codebooks[stream], num_codes, config.code_width[stream]
            )
        read_width = sum(config.code_width[stream] for stream in config.inputs)
        self.visual_projector = VisualProjector(read_width, text.hidden_size)
        self.visual_positions = None
        if config.visual_position == "learned":
            height, width = config.grid
            self.visual_positions = GridPositions(height, width, text.hidden_size)

    def embed_codes(
        self, sums: dict[str, Float[Tensor, "V D _"]], places: Int[Tensor, "V"]
    ) -> Float[Tensor, "V H"]:
        """Return image positions as the trunk reads them; `places` are those in the image's raster order."""
        vectors = torch.cat([sums[stream][:, -1] for stream in self.config.inputs], dim=1)
        weight = self.visual_projector.up.weight
        embedded = self.visual_projector(vectors.to(weight.dtype))
        if self.visual_positions is not None:
            embedded = embedded + self.visual_positions(places)
        return embedded

    def code_sums(
        self, codes: dict[str, Integer[Tensor, "V D"]], unread: Bool[Tensor, "V"] | None = None
    ) -> dict[str, Float[Tensor, "V D _"]]:
        """Return by stream the code vectors summed up to each depth; zeros where they are `unread`."""
        sums = {stream: self.code_vectors(stream)(ids) for stream, ids in codes.items()}
        if unread is None:
            return sums
        return {stream: of_stream.masked_fill(unread[:, None, None], 0) for stream, of_stream in sums.items()}

    def code_vectors(self, stream: str) -> CodeVectors:
        """Return the code vectors of a stream."""
        vectors = self.codebooks[stream]
        assert isinstance(vectors, CodeVectors)
        return vectors

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        visual: Bool[Tensor, "B T"],
        sums: dict[str, Float[Tensor, "V D _"]],
    ) -> Float[Tensor, "B T H"]:
        """Return the trunk's input; the images of a batch stand whole in its rows, in order."""
        embedded = self.language_model.get_input_embeddings()(input_ids)
        if not sums:
            return embedded
        num_visual = len(next(iter(sums.values())))
        places = torch.arange(num_visual, device=input_ids.device) % self.config.image_positions
        of_images = self.embed_codes(sums, places).to(embedded.dtype)
        # By index: a masked scatter has no deterministic gradient on a GPU.
        positions = visual.flatten().nonzero().squeeze(1)
        return embedded.flatten(0, 1).index_copy(0, positions, of_images).view_as(embedded)


class UnifiedModel(PreTrainedModel, GenerationMixin):
    """Trunk, projector and heads, with transformers' generation of text."""

    config_class = DualTokenMllmConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012  (transformers' own form)
    output_modalities = ["image", "text"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = None
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DualTokenMllmConfig) -> None:
        config._attn_implementation = PACKED_SDPA  # noqa: SLF001  (transformers' own way)
        super().__init__(config)
        text = config.text_config
        self.model = DualTokenMllmModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.heads = nn.ModuleDict()
        for stream in config.targets:
            self.heads[stream] = DepthHead(
                config.head_config,
                trunk_width=text.hidden_size,
                depth=config.depth,
                num_codes=config.num_codes[stream],
                code_width=config.code_width[stream],
            )
        self.post_init()

    def head(self, stream: str) -> DepthHead:
        """Return the head of a stream."""
        head = self.heads[stream]
        assert isinstance(head, DepthHead)
        return head

    def get_input_embeddings(self) -> nn.Module:
        """Return the text embeddings."""
        return self.model.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text embeddings."""
        self.model.language_model.set_input_embeddings(value)

    def hidden_states(
        self,
        input_ids: Int[Tensor, "B T"],
        is_visual: Bool[Tensor, "B T"],
        codes: dict[str, Integer[Tensor, "V D"]],
        segments: Segments,
        unread: Bool[Tensor, "V"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """Return the trunk's states of packed sequences, whose segments see themselves and their prefix.

        Of the image positions that are `unread` it sees that they are there, and not their codes.
        """
        embedded = self.model.embed(input_ids, is_visual, self.model.code_sums(codes, unread))
        output = self.model.language_model(
            inputs_embeds=embedded,
            attention_mask=unmasked(embedded),
            position_ids=segments.places().view_as(input_ids),
            use_cache=False,
            segments=segments,
        )
        return output.last_hidden_state

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        semantic: Integer[Tensor, "_ _ D"] | None = None,
        pixel: Integer[Tensor, "_ _ D"] | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,  # noqa: ANN401
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next text id at each position.

        `semantic` and `pixel` are the codes of all images of the batch in order, (images, N, D); `input_ids`
        has `config.image_token_id` at each of their positions.

        Raises ValueError where the images do not fit these positions.
        """
        if inputs_embeds is None:
            assert input_ids is not None, "give input_ids or inputs_embeds"
            inputs_embeds = self._embed_inputs(input_ids, semantic, pixel)
        output = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states
        )

    def _embed_inputs(
        self, input_ids: Tensor, semantic: Tensor | None, pixel: Tensor | None
    ) -> Float[Tensor, "B T H"]:
        visual = input_ids == self.config.image_token_id
        num_positions = int(visual.sum())
        given = {"semantic": semantic, "pixel": pixel}
        codes: dict[str, Tensor] = {}
        if num_positions or semantic is not None or pixel is not None:
            for stream in self.config.inputs:
                codes[stream] = self._checked_codes(stream, given[stream], num_positions)
        return self.model.embed(input_ids, visual, self.model.code_sums(codes))

    def _checked_codes(self, stream: str, codes: Tensor | None, num_positions: int) -> Tensor:
        """Return a stream's codes as (V, D); raises ValueError where they are not those of the positions."""
        if codes is None:
            raise ValueError(f"{stream}=None for {num_positions} image positions: pass their codes")
        flat = codes.flatten(0, -2)
        if flat.shape != (num_positions, self.config.depth):
            raise ValueError(
                f"{stream} has shape {tuple(codes.shape)}, input_ids {num_positions} image positions of "
                f"depth {self.config.depth}: an image takes {self.config.image_positions} positions"
            )
        if int(flat.max()) >= self.config.num_codes[stream]:
            raise ValueError(
                f"{stream} has code {int(flat.max())}, the model knows {self.config.num_codes[stream]}: "
                "encode the images with the model's own tokenizer"
            )
        return flat

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        is_first_iteration: bool = False,
        use_cache: bool = True,
        **kwargs: Any,  # noqa: ANN401  (transformers looks for this name)
    ) -> dict[str, Any]:
        """Hand images over with the prompt only: the cache has them afterwards."""
        inputs = GenerationMixin.prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            self, input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:
            inputs["semantic"] = None
            inputs["pixel"] = None
        return inputs
