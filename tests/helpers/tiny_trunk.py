"""Folders of causal language models, made in a moment, as transformers saves them."""

from pathlib import Path
from typing import Any, Literal

import torch

from dualtoken.model.randomness import seeded_weights
from dualtoken.model.vision.imports import vision_imports
from tests.helpers.tiny_mllm import TEXT

with vision_imports():
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

TrunkName = Literal["qwen2", "llama"]
SPARE_IDS = 20
"""Embeddings beyond the tokenizer's ids, which pretrained models have for round numbers."""


def tiny_trunk(folder: Path, name: TrunkName, *, vocabulary: int | None = None) -> Path:
    """Save a trunk and its tokenizer: tied embeddings for Qwen2, its own output for Llama."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary or len(TEXT) + SPARE_IDS,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    with seeded_weights(5):
        if name == "qwen2":
            model: torch.nn.Module = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    TEXT.save_pretrained(str(folder))
    return folder
