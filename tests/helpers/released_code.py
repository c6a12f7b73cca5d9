"""What the released DualToken code computes, written from its description and apart from our networks.

Plain functions on a checkpoint's tensors under the released names, and on its configuration file. Nothing of
`dualtoken` is imported: our conversions are compared with it.

B images, N tokens, W channels of the tower, P channels of a code, D depths.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = 32
"""Groups of each GroupNorm, which the released code has no setting for."""


class ReleasedOutput(NamedTuple):
    """Codes of both streams, (B, N, D), the image embedding, and the decoded images."""

    pixel: Tensor
    semantic: Tensor
    pooled: Tensor
    images: Tensor


class ReleasedCode:
    """The released network in evaluation."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self._config = config
        self._weights = weights

    def double(self) -> "ReleasedCode":
        """Return the same network in float64."""
        return ReleasedCode(self._config, {name: tensor.double() for name, tensor in self._weights.items()})

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ReleasedOutput:
        """Encode and decode images of -1 to 1."""
        config = self._config
        vision = "siglip_model.vision_model."
        hidden = self._embeddings(images, vision)
        num_layers = config["siglip"]["vision"]["num_hidden_layers"]
        states = [hidden]
        pixel_codes = semantic_codes = pixel = None
        for layer in range(1, num_layers + 1):
            hidden = self._vision_layer(hidden, f"{vision}encoder.layers.{layer - 1}.")
            states.append(hidden)
            if layer == config["layer_sem"]:
                reduced = self._projection(hidden, "prequant_sem.", causal=False)
                semantic_codes, quantized = self._quantize(reduced, "vq_sem", "quantizer_sem.")
                hidden = self._projection(quantized, "postquant_sem.", causal=True)
        pixel = self._projection(states[config["layer_recon"]], "prequant_pix.", causal=False)
        if config.get("layer_shortcut") is not None:
            shortcut = self._projection(states[config["layer_shortcut"]], "prequant_shortcut.", causal=False)
            pixel = pixel + config["weight_shortcut"] * shortcut
        pixel_codes, quantized = self._quantize(pixel, "vq_pix", "quantizer_pix.")
        assert semantic_codes is not None
        return ReleasedOutput(
            pixel_codes, semantic_codes, self._pooled(hidden, vision), self._decode(quantized)
        )

    def _embeddings(self, images: Tensor, prefix: str) -> Tensor:
        weight = self._weights[f"{prefix}embeddings.patch_embedding.weight"]
        bias = self._weights[f"{prefix}embeddings.patch_embedding.bias"]
        patches = F.conv2d(images, weight, bias, stride=weight.shape[-1])
        positions = self._weights[f"{prefix}embeddings.position_embedding.weight"]
        return patches.flatten(2).transpose(1, 2) + positions

    def _vision_layer(self, hidden: Tensor, prefix: str) -> Tensor:
        normed = self._layer_norm(hidden, f"{prefix}layer_norm1", 1e-6)
        queries = self._linear(normed, f"{prefix}self_attn.q_proj")
        keys = self._linear(normed, f"{prefix}self_attn.k_proj")
        values = self._linear(normed, f"{prefix}self_attn.v_proj")
        num_heads = self._config["siglip"]["vision"]["num_attention_heads"]
        attended = _attention(queries, keys, values, num_heads, causal=False)
        hidden = hidden + self._linear(attended, f"{prefix}self_attn.out_proj")
        normed = self._layer_norm(hidden, f"{prefix}layer_norm2", 1e-6)
        return hidden + self._mlp(normed, f"{prefix}mlp.")

    def _mlp(self, hidden: Tensor, prefix: str) -> Tensor:
        activation = self._config["siglip"]["vision"].get("hidden_act", "gelu_pytorch_tanh")
        approximate = "tanh" if activation == "gelu_pytorch_tanh" else "none"
        inner = F.gelu(self._linear(hidden, f"{prefix}fc1"), approximate=approximate)
        return self._linear(inner, f"{prefix}fc2")

    def _pooled(self, hidden: Tensor, prefix: str) -> Tensor:
        """Return what the attention pool says of the last states."""
        hidden = self._layer_norm(hidden, f"{prefix}post_layernorm", 1e-6)
        probe = self._weights[f"{prefix}head.probe"].expand(len(hidden), -1, -1)
        weight = self._weights[f"{prefix}head.attention.in_proj_weight"].chunk(3)
        bias = self._weights[f"{prefix}head.attention.in_proj_bias"].chunk(3)
        num_heads = self._config["siglip"]["vision"]["num_attention_heads"]
        attended = _attention(
            F.linear(probe, weight[0], bias[0]),
            F.linear(hidden, weight[1], bias[1]),
            F.linear(hidden, weight[2], bias[2]),
            num_heads,
            causal=False,
        )
        pooled = self._linear(attended, f"{prefix}head.attention.out_proj")
        return (
            pooled
            + self._mlp(self._layer_norm(pooled, f"{prefix}head.layernorm", 1e-6), f"{prefix}head.mlp.")
        )[:, 0]

    def _projection(self, tokens: Tensor, prefix: str, *, causal: bool) -> Tensor:
        """Return tokens of the other width: attention and a linear skip, then a gated MLP."""
        normed = self._layer_norm(tokens, f"{prefix}norm1", 1e-5)
        zeros = self._weights[f"{prefix}attn.zero_k_bias"]
        bias = torch.cat(
            (self._weights[f"{prefix}attn.q_bias"], zeros, self._weights[f"{prefix}attn.v_bias"])
        )
        queries, keys, values = F.linear(normed, self._weights[f"{prefix}attn.qkv.weight"], bias).chunk(3, -1)
        in_width = tokens.shape[-1]
        out_width = self._weights[f"{prefix}proj.weight"].shape[0]
        num_heads = max(in_width, out_width) // min(in_width, out_width)
        attended = _attention(queries, keys, values, num_heads, causal=causal)
        if in_width > out_width:
            attended = attended.unflatten(-1, (num_heads, out_width)).mean(dim=-2)
        changed = self._linear(self._layer_norm(tokens, f"{prefix}norm3", 1e-5), f"{prefix}proj")
        changed = changed + self._linear(attended, f"{prefix}attn.proj")
        inner = self._layer_norm(self._layer_norm(changed, f"{prefix}norm2", 1e-5), f"{prefix}mlp.norm", 1e-6)
        gate = F.gelu(self._linear(inner, f"{prefix}mlp.w0"), approximate="tanh")
        return changed + self._linear(gate * self._linear(inner, f"{prefix}mlp.w1"), f"{prefix}mlp.w2")

    def _quantize(self, tokens: Tensor, config: str, prefix: str) -> tuple[Tensor, Tensor]:
        """Return the codes of all depths and their vectors' sum."""
        residual = tokens.double()
        total = torch.zeros_like(tokens)
        codes = []
        for depth in range(self._config[config]["code_shape"][-1]):
            codebook = self._weights[f"{prefix}codebooks.{depth}.weight"][:-1]
            chosen = torch.cdist(residual, codebook.double()).argmin(dim=-1)
            residual = residual - codebook[chosen].double()
            total = total + codebook[chosen]
            codes.append(chosen)
        return torch.stack(codes, dim=-1), total

    def _decode(self, quantized: Tensor) -> Tensor:
        config = self._config["ddconfig"]
        tokens = self._projection(quantized, "postquant_pix.", causal=True)
        side = round(tokens.shape[1] ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        if self._config["decoder_latent_shape"] is not None:
            size = tuple(self._config["decoder_latent_shape"])
            grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        hidden = self._conv(self._res_block(grid, "post_quant_conv."), "decoder.conv_in")
        hidden = self._res_block(hidden, "decoder.mid.block_1.")
        hidden = self._attention_block(hidden, "decoder.mid.attn_1.")
        hidden = self._res_block(hidden, "decoder.mid.block_2.")
        lowest = len(config["ch_mult"]) - 1
        resolution = config["resolution"] // 2**lowest
        for level in range(lowest, -1, -1):
            for block in range(config["num_res_blocks"] + 1):
                hidden = self._res_block(hidden, f"decoder.up.{level}.block.{block}.")
                if resolution in config["attn_resolutions"]:
                    hidden = self._attention_block(hidden, f"decoder.up.{level}.attn.{block}.")
            if level > 0:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
                hidden = self._conv(hidden, f"decoder.up.{level}.upsample.conv")
                resolution *= 2
        return self._conv(F.silu(self._group_norm(hidden, "decoder.norm_out")), "decoder.conv_out")

    def _res_block(self, grid: Tensor, prefix: str) -> Tensor:
        hidden = self._conv(F.silu(self._group_norm(grid, f"{prefix}norm1")), f"{prefix}conv1")
        hidden = self._conv(F.silu(self._group_norm(hidden, f"{prefix}norm2")), f"{prefix}conv2")
        if f"{prefix}nin_shortcut.weight" in self._weights:
            grid = self._conv(grid, f"{prefix}nin_shortcut")
        return grid + hidden

    def _attention_block(self, grid: Tensor, prefix: str) -> Tensor:
        normed = self._group_norm(grid, f"{prefix}norm")
        queries, keys, values = (self._conv(normed, f"{prefix}{name}").flatten(2) for name in "qkv")
        scores = torch.bmm(queries.transpose(1, 2), keys) * queries.shape[1] ** -0.5
        attended = torch.bmm(values, scores.softmax(dim=2).transpose(1, 2))
        return grid + self._conv(attended.view_as(grid), f"{prefix}proj_out")

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return F.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _conv(self, grid: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return F.conv2d(grid, weight, self._weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _layer_norm(self, hidden: Tensor, name: str, eps: float) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return F.layer_norm(hidden, weight.shape, weight, self._weights[f"{name}.bias"], eps)

    def _group_norm(self, grid: Tensor, name: str) -> Tensor:
        return F.group_norm(
            grid, GROUPS, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], 1e-6
        )


def _attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, *, causal: bool) -> Tensor:
    """Return what heads side by side see."""
    heads = []
    for query, key, value in zip(
        queries.chunk(num_heads, -1), keys.chunk(num_heads, -1), values.chunk(num_heads, -1), strict=True
    ):
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        if causal:
            hides = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hides, -torch.inf)
        heads.append(scores.softmax(dim=-1) @ value)
    return torch.cat(heads, dim=-1)
