"""Dimensions of a language model's trunk, as its cost is counted by; imports neither torch nor transformers.

A shape states its own. Named ones of Qwen2.5 stand here, from the config.json of their repositories
(arXiv 2412.15115, table 1); any other is read from the config.json of its folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dualtoken.model.config.mllm import NamedTrunk, TrunkShape


class TrunkDimensions(NamedTuple):
    """A trunk of pre-norm blocks with grouped attention and a gated MLP: Qwen2's, Llama's or Mistral's."""

    width: int
    """Channels of a position."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Attention heads of a block."""
    num_key_value_heads: int
    """Heads of keys and values of a block."""
    head_width: int
    """Channels of an attention head."""
    mlp_width: int
    """Channels inside a block's MLP."""
    vocabulary: int
    """Rows of the embedding table, those of no id included."""
    is_tied: bool
    """Whether the text head's weights are the embeddings."""
    biases: frozenset[str] = frozenset()
    """Names of a block's linear layers that have a bias, such as `q_proj`."""

    @property
    def query_width(self) -> int:
        """Channels of all attention heads."""
        return self.num_heads * self.head_width

    @property
    def key_width(self) -> int:
        """Channels of all heads of keys, and of values."""
        return self.num_key_value_heads * self.head_width


_QWEN2_BIASES = frozenset({"q_proj", "k_proj", "v_proj"})
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
_COUNTED = ("qwen2", "llama", "mistral")
"""Values of `model_type` whose layers are counted."""


def _qwen2(
    width: int,
    depth: int,
    num_heads: int,
    num_key_value_heads: int,
    mlp_width: int,
    vocabulary: int,
    *,
    is_tied: bool = True,
) -> TrunkDimensions:
    return TrunkDimensions(
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_width=width // num_heads,
        mlp_width=mlp_width,
        vocabulary=vocabulary,
        is_tied=is_tied,
        biases=_QWEN2_BIASES,
    )


NAMED_TRUNKS = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864, 151936),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 8960, 151936),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 11008, 151936),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944, 152064, is_tied=False),
}
"""Trunks that are known by name; their instruction-tuned versions have the same dimensions."""


def trunk_dimensions(trunk: TrunkShape | NamedTrunk) -> TrunkDimensions:
    """Return the dimensions of a recipe's trunk; no network is asked.

    Raises ValueError for a named one that is neither known nor a local folder, or has other layers.
    """
    if isinstance(trunk, TrunkShape):
        groups = trunk.num_key_value_heads or trunk.num_heads
        shape = (trunk.width, trunk.depth, trunk.num_heads, groups, trunk.mlp_width, trunk.vocabulary)
        return _qwen2(*shape)
    known = NAMED_TRUNKS.get(trunk.model.removesuffix("-Instruct"))
    if known is not None:
        return known
    file = Path(trunk.model) / "config.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"trunk.model={trunk.model} has layers that are not known without its config.json: "
            "name a local folder"
        ) from None
    return stated_dimensions(stated)


def stated_dimensions(config: Mapping[str, Any]) -> TrunkDimensions:
    """Return the dimensions that a causal language model's config.json states.

    Raises ValueError for a model whose layers are others.
    """
    kind = config.get("model_type")
    if kind not in _COUNTED:
        raise ValueError(f"a trunk of model_type={kind} has layers that are not counted")
    width = config["hidden_size"]
    num_heads = config["num_attention_heads"]
    biases: frozenset[str] = frozenset()
    if kind == "qwen2":
        biases = _QWEN2_BIASES
    if kind == "llama" and config.get("attention_bias"):
        biases |= _ATTENTION
    if kind == "llama" and config.get("mlp_bias"):
        biases |= _MLP
    return TrunkDimensions(
        width=width,
        depth=config["num_hidden_layers"],
        num_heads=num_heads,
        num_key_value_heads=config.get("num_key_value_heads") or num_heads,
        head_width=config.get("head_dim") or width // num_heads,
        mlp_width=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        is_tied=bool(config.get("tie_word_embeddings", False)),
        biases=biases,
    )
