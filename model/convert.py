"""Weights of the released DualToken code (a checkpoint's state dict) under our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_RENAMED = (
    (r"^prequant_pix\.", "reduce_pixel."),
    (r"^prequant_shortcut\.", "reduce_shortcut."),
    (r"^prequant_sem\.", "reduce_semantic."),
    (r"^postquant_pix\.", "expand_pixel."),
    (r"^postquant_sem\.", "expand_semantic."),
    (r"^post_quant_conv\.", "post_quant."),
    (r"^quantizer_pix\.codebooks\.0\.", "quantize_pixel."),
    (r"^quantizer_sem\.codebooks\.0\.", "quantize_semantic."),
    (r"\.cluster_size_ema$", ".counts"),
    (r"\.embed_ema$", ".sums"),
    (r"^(quantize_\w+)\.weight$", r"\1.codes"),
    (r"^siglip_model\.vision_model\.embeddings\.patch_embedding\.", "tower.patch_embed.proj."),
    (r"^siglip_model\.vision_model\.embeddings\.position_embedding\.weight$", "tower.pos_embed"),
    (r"^siglip_model\.vision_model\.encoder\.layers\.", "tower.blocks."),
    (r"^siglip_model\.vision_model\.post_layernorm\.", "tower.norm."),
    (r"^siglip_model\.vision_model\.head\.probe$", "tower.attn_pool.latent"),
    (r"^siglip_model\.vision_model\.head\.attention\.out_proj\.", "tower.attn_pool.proj."),
    (r"^siglip_model\.vision_model\.head\.layernorm\.", "tower.attn_pool.norm."),
    (r"^siglip_model\.vision_model\.head\.mlp\.", "tower.attn_pool.mlp."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
_QUERY = re.compile(r"(tower\.blocks\.\d+)\.self_attn\.q_proj\.(weight|bias)")
_POOL = re.compile(r"siglip_model\.vision_model\.head\.attention\.in_proj_(weight|bias)")


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `DualTokenizer.load_state_dict` takes; the text tower, not part of the tokenizer, is left out.

    Raises ValueError if the depths of a quantiser have different codebooks, which ours share.
    """
    _check_depths_share_a_codebook(state)
    dropped = re.compile(r"siglip_model\.(text_model\.|logit_)|.*\.zero_k_bias$|quantizer_\w+\.codebooks\.(?!0\.)")
    renamed = {_rename(name): tensor for name, tensor in state.items() if not dropped.match(name)}
    # Keys and values go where their queries go.
    merged = dict(_merged(name, renamed) for name in renamed if not re.search(r"\.self_attn\.[kv]_proj\.|\.in_proj_", name))
    return merged | _pool(renamed)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _merged(name: str, state: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Join a block's query, key and value weights, as timm has them, and drop what pads a codebook."""
    if match := _QUERY.fullmatch(name):
        block, kind = match.groups()
        return f"{block}.attn.qkv.{kind}", torch.cat([state[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
    if name.endswith(".codes"):
        # The last row pads and is never chosen.
        return name, state[name][:-1]
    return name, state[name][None] if name == "tower.pos_embed" else state[name]


def _pool(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Part the attention pool's joint projection into timm's query and key-value projections."""
    parts = {}
    for name, tensor in state.items():
        if match := _POOL.fullmatch(name):
            width = len(tensor) // 3
            parts[f"tower.attn_pool.q.{match[1]}"], parts[f"tower.attn_pool.kv.{match[1]}"] = tensor[:width], tensor[width:]
    return parts


def _check_depths_share_a_codebook(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        first = re.sub(r"\.codebooks\.\d+\.", ".codebooks.0.", name)
        if first != name and not torch.equal(tensor, state[first]):
            raise ValueError(f"{name} differs from {first}: only checkpoints with shared_codebook=true can be converted")
