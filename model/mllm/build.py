"""Builds a unified model: a fresh trunk or a pretrained one, with the code vectors of a tokenizer."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from dualtoken.model.config.mllm import STREAM_NAMES, MllmConfig, NamedTrunk, TrunkShape
from dualtoken.model.mllm.attention import PACKED_SDPA
from dualtoken.model.mllm.code_vectors import AnyQuantizer, code_table
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.mllm.initialization import initialize_trunk, initialize_visual_parts
from dualtoken.model.mllm.text_tokenizer import text_markers
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase, Qwen2Config

MAX_POSITIONS = 32768
"""Positions of a document that a fresh trunk is made for; rotary embeddings set no limit of their own."""


def build_mllm(
    config: MllmConfig,
    vision: DualTokenizer,
    vision_sha256: str,
    text: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    codes: Mapping[str, Integer[Tensor, "V D"]] | None = None,
) -> DualTokenForConditionalGeneration:
    """Return a model that reads and draws a tokenizer's codes, named by the SHA-256 of its weights.

    `codes` are those of some images, by stream: the code vectors are standardised by them.

    Raises ValueError where a named trunk cannot be had, or has fewer embeddings than its tokenizer has ids.
    """
    model_config = _model_config(config, vision, vision_sha256, text)
    with seeded_weights(seed):
        model = DualTokenForConditionalGeneration(model_config)
        for stream in STREAM_NAMES:
            vectors = model.model.code_vectors(stream)
            vectors.load_quantizer(_quantizer(vision, stream))
            if codes is not None:
                vectors.standardize(codes[stream])
        if isinstance(config.trunk, NamedTrunk):
            _load_trunk(model, config.trunk)
        else:
            initialize_trunk(model.model.language_model, config.trunk.depth)
        initialize_visual_parts(model, codes, code_likeness=config.code_likeness)
    return model


def _quantizer(vision: DualTokenizer, stream: str) -> AnyQuantizer:
    quantizer = vision.quantize_pixel if stream == "pixel" else vision.quantize_semantic
    assert isinstance(quantizer, AnyQuantizer)
    return quantizer


def _model_config(
    config: MllmConfig, vision: DualTokenizer, vision_sha256: str, text: PreTrainedTokenizerBase
) -> DualTokenMllmConfig:
    markers = text_markers(text)
    text_config = _text_config(config.trunk, text)
    if len(text) > text_config.vocab_size:
        raise ValueError(
            f"the text tokenizer has {len(text)} ids, the trunk {text_config.vocab_size} embeddings: "
            "name a trunk and a tokenizer that belong together"
        )
    tables = {stream: code_table(_quantizer(vision, stream)).shape for stream in STREAM_NAMES}
    side = vision.config.grid_size
    return DualTokenMllmConfig(
        text_config,
        head=config.head.model_dump(mode="json"),
        inputs=config.inputs,
        targets=config.targets,
        visual_position=config.visual_position,
        drawing=config.drawing.model_dump(mode="json"),
        grid=(side, side),
        depth=vision.config.pixel.depth,
        num_codebooks={stream: shape[0] for stream, shape in tables.items()},
        num_codes={stream: shape[1] for stream, shape in tables.items()},
        code_width={stream: shape[2] for stream, shape in tables.items()},
        vision_tokenizer=vision_sha256,
        image_token_id=markers.image,
        image_start_id=markers.image_start,
        image_end_id=markers.image_end,
        turn_end_ids=markers.turn_end[:1],
        tie_word_embeddings=text_config.tie_word_embeddings,
        eos_token_id=markers.end,
        pad_token_id=markers.end,
    )


def _text_config(trunk: TrunkShape | NamedTrunk, text: PreTrainedTokenizerBase) -> PretrainedConfig:
    if isinstance(trunk, NamedTrunk):
        try:
            return AutoConfig.from_pretrained(trunk.model, revision=trunk.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_had(trunk, error) from None
    return Qwen2Config(
        vocab_size=len(text),
        hidden_size=trunk.width,
        intermediate_size=trunk.mlp_width,
        num_hidden_layers=trunk.depth,
        num_attention_heads=trunk.num_heads,
        num_key_value_heads=trunk.num_key_value_heads or trunk.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
    )


def _load_trunk(model: DualTokenForConditionalGeneration, trunk: NamedTrunk) -> None:
    """Take a pretrained trunk's weights, in float32."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            trunk.model,
            revision=trunk.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=PACKED_SDPA,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_had(trunk, error) from None
    pretrained, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would go on with random ones.
        raise _not_had(trunk, f"its weights lack {len(missing)} tensors, such as {missing[0]}")
    model.model.language_model = pretrained.base_model
    model.lm_head.weight = pretrained.get_output_embeddings().weight


def _not_had(trunk: NamedTrunk, problem: object) -> ValueError:
    return ValueError(f"mllm.trunk.model={trunk.model!r} cannot be had: {' '.join(str(problem).split())}")
