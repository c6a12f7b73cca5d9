"""Attention projections between tower width and code width.

Source: DualToken's released code, after UniTok (arXiv 2502.20321). B images, N tokens, I input channels, O
output channels. Parameters have the names of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AttnProjection(nn.Module):
    """Change the width of tokens by attention plus a linear skip, then a gated MLP.

    Every head is as wide as the narrower side. Raises ValueError unless one width is a multiple of the other.
    """

    def __init__(self, in_width: int, out_width: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_width)
        self.norm2 = nn.LayerNorm(out_width)
        self.norm3 = nn.LayerNorm(in_width)
        self.attn = _Attention(in_width, out_width, causal=causal)
        self.proj = nn.Linear(in_width, out_width)
        self.mlp = _GatedMlp(out_width, 2 * out_width)

    def forward(self, tokens: Float[Tensor, "B N I"]) -> Float[Tensor, "B N O"]:
        """Return the tokens at the other width.

        If causal, a token depends on itself and those before it in raster order.
        """
        changed = self.proj(self.norm3(tokens)) + self.attn(self.norm1(tokens))
        return changed + self.mlp(self.norm2(changed))


class _Attention(nn.Module):
    """Multi-head attention that changes the width of tokens."""

    def __init__(self, in_width: int, out_width: int, *, causal: bool) -> None:
        super().__init__()
        wide = max(in_width, out_width)
        self.head_width = min(in_width, out_width)
        if wide % self.head_width:
            raise ValueError(f"widths {in_width} and {out_width}: make one a multiple of the other")
        self.reduces = in_width > out_width
        self.causal = causal
        self.qkv = nn.Linear(in_width, 3 * wide, bias=False)
        # Keys have no bias: it would add the same number to all scores of a query.
        self.q_bias = nn.Parameter(torch.zeros(wide))
        self.v_bias = nn.Parameter(torch.zeros(wide))
        self.proj = nn.Linear(out_width, out_width)

    def forward(self, tokens: Float[Tensor, "B N I"]) -> Float[Tensor, "B N O"]:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        projected = F.linear(tokens, self.qkv.weight, bias)
        queries, keys, values = projected.unflatten(-1, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        # Narrowing, the heads' mean has the output's width; widening, the heads side by side have it.
        if self.reduces:
            return self.proj(heads.mean(dim=1))
        return self.proj(heads.transpose(1, 2).flatten(2))


class _GatedMlp(nn.Module):
    """GeGLU (arXiv 2002.05202) behind a norm of its own."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, hidden_width)
        self.w1 = nn.Linear(width, hidden_width)
        self.w2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Float[Tensor, "B N O"]) -> Float[Tensor, "B N O"]:
        tokens = self.norm(tokens)
        return self.w2(F.gelu(self.w0(tokens), approximate="tanh") * self.w1(tokens))
