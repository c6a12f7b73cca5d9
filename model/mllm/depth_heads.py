"""Heads that predict the codes of an image position, depth by depth, from the language model's state.

Source: DualToken, arXiv 2503.14324, section 3.3, and the RQ-Transformer, arXiv 2203.01941. There is a head
for each stream, and depth d of it sees the state and its own stream's codes before d only. Blocks are plain
pre-norm: the released code's second norm sits in the residual path, ours does not.

S streams, P positions, D depths, K codes, C channels of a code vector, H channels of the trunk, E of a head,
F inside its MLP, A attention heads.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.mllm import DepthHeadConfig

NORM_EPSILON = 1e-6
NO_CODE = -1e9
"""Logit of what is no code of a stream: finite, so that guidance can subtract it."""


class DepthBlock(nn.Module):
    """Causal attention over the depths of one position, then an MLP, which may be each depth's own."""

    def __init__(self, config: DepthHeadConfig, depth: int) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(width, NORM_EPSILON)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, NORM_EPSILON)
        num_mlps = depth if config.mlp == "per_depth" else 1
        self.mlp_up = nn.ModuleList(nn.Linear(width, config.inner_width, bias=False) for _ in range(num_mlps))
        self.mlp_down = nn.ModuleList(
            nn.Linear(config.inner_width, width, bias=False) for _ in range(num_mlps)
        )

    def forward(self, states: Float[Tensor, "P D E"]) -> Float[Tensor, "P D E"]:
        """Return new states of the first depths: as many as there are."""
        qkv = self.qkv(self.attention_norm(states)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.attention_out(attended.transpose(1, 2).flatten(2))
        inner = self.mlp_norm(states)
        if len(self.mlp_up) == 1:
            return states + self.mlp_down[0](F.gelu(self.mlp_up[0](inner)))
        by_depth: list[Tensor] = []
        for place in range(states.shape[1]):
            up = F.gelu(self.mlp_up[place](inner[:, place]))
            by_depth.append(self.mlp_down[place](up))
        return states + torch.stack(by_depth, dim=1)


class DepthHead(nn.Module):
    """The head of one stream."""

    def __init__(
        self, config: DepthHeadConfig, *, trunk_width: int, depth: int, num_codes: int, code_width: int
    ) -> None:
        super().__init__()
        width = config.width
        self.project_up = nn.Linear(trunk_width, width)
        self.project_out = nn.Linear(width, width)
        self.code_in = nn.Linear(code_width, width)
        self.blocks = nn.ModuleList(DepthBlock(config, depth) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width, NORM_EPSILON)
        self.classifiers = nn.ModuleList(nn.Linear(width, num_codes, bias=False) for _ in range(depth))

    def depth_blocks(self) -> list[DepthBlock]:
        """Return the blocks, the first one first."""
        return [block for block in self.blocks if isinstance(block, DepthBlock)]

    def classifier_weights(self) -> list[Float[Tensor, "K E"]]:
        """Return the weights that predict the code of each depth."""
        return [classifier.get_parameter("weight") for classifier in self.classifiers]

    def forward(self, hidden: Float[Tensor, "P H"], sums: Float[Tensor, "P _ C"]) -> Float[Tensor, "P D E"]:
        """Return normed states, from which each depth's classifier predicts its code.

        `sums` are the code vectors summed up to each depth but the last: those of d - 1 depths give d states.
        """
        first = self.project_out(F.gelu(self.project_up(hidden)))
        states = torch.cat([first[:, None], self.code_in(sums.to(first.dtype))], dim=1)
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class _BlockWeights(NamedTuple):
    """Weights of a block, of all streams side by side: S is the first axis of each."""

    attention_norm: Float[Tensor, "S E"]
    qkv: Float[Tensor, "S E _"]
    attention_out: Float[Tensor, "S E E"]
    mlp_norm: Float[Tensor, "S E"]
    mlp_up: list[Float[Tensor, "S E F"]]
    mlp_down: list[Float[Tensor, "S F E"]]


class DecodingHeads:
    """The heads of all streams batched as one, with a cache of the depths so far; inference only.

    A position takes D steps in place of the D * S of heads in turn, and no depth is computed twice.
    """

    @torch.no_grad()
    def __init__(self, heads: Mapping[str, DepthHead]) -> None:
        """Copy the heads' weights side by side; all heads have one shape but for their number of codes."""
        members = list(heads.values())
        first = members[0]
        self.depth = len(first.classifiers)
        self.num_heads = first.depth_blocks()[0].num_heads
        self.streams = tuple(heads)
        self._project_up = _stack([head.project_up for head in members])
        self._project_out = _stack([head.project_out for head in members])
        self._code_in = _stack_narrow([head.code_in for head in members])
        self._norm = torch.stack([head.norm.weight for head in members])
        self._blocks: list[_BlockWeights] = []
        for blocks in zip(*(head.depth_blocks() for head in members), strict=True):
            self._blocks.append(_block_weights(list(blocks)))
        num_codes = [len(head.classifier_weights()[0]) for head in members]
        self._classifiers: list[Tensor] = []
        for place in range(self.depth):
            columns: list[Tensor] = []
            for head in members:
                weight = head.classifier_weights()[place]
                columns.append(F.pad(weight.T, (0, max(num_codes) - weight.shape[0])))
            self._classifiers.append(torch.stack(columns))
        # A stream with fewer codes than the other one has none beyond its own.
        codes = torch.arange(max(num_codes), device=self._norm.device)
        self._is_no_code = codes >= torch.tensor(num_codes, device=codes.device)[:, None]  # (S, K)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @torch.no_grad()
    def first_logits(self, hidden: Float[Tensor, "P H"]) -> Float[Tensor, "S P K"]:
        """Begin positions: return the logits of their first codes, float32."""
        weight, bias = self._project_up
        inner = F.gelu(torch.matmul(hidden, weight) + bias)
        states = torch.baddbmm(self._project_out[1], inner, self._project_out[0])
        num_streams, num_positions, width = states.shape
        shape = (num_streams * num_positions, self.num_heads, self.depth, width // self.num_heads)
        self._keys = [states.new_zeros(shape) for _ in self._blocks]
        self._values = [states.new_zeros(shape) for _ in self._blocks]
        return self._logits(states, 0)

    @torch.no_grad()
    def next_logits(self, sums: Float[Tensor, "S P C"], place: int) -> Float[Tensor, "S P K"]:
        """Return the logits of the codes at depth `place`, from the vectors of those before, summed."""
        weight, bias = self._code_in
        return self._logits(torch.baddbmm(bias, sums.to(weight.dtype), weight), place)

    def _logits(self, states: Float[Tensor, "S P E"], place: int) -> Float[Tensor, "S P K"]:
        for number, block in enumerate(self._blocks):
            states = states + self._attend(states, block, number, place)
            inner = _rms_norm(states, block.mlp_norm)
            own = place if len(block.mlp_up) > 1 else 0
            states = states + F.gelu(inner @ block.mlp_up[own]) @ block.mlp_down[own]
        logits = _rms_norm(states, self._norm) @ self._classifiers[place]
        return logits.float().masked_fill(self._is_no_code[:, None], NO_CODE)

    def _attend(
        self, states: Float[Tensor, "S P E"], block: _BlockWeights, number: int, place: int
    ) -> Float[Tensor, "S P E"]:
        num_streams, num_positions, _ = states.shape
        qkv = _rms_norm(states, block.attention_norm) @ block.qkv
        query, key, value = qkv.flatten(0, 1).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        keys = self._keys[number]
        values = self._values[number]
        keys[:, :, place] = key
        values[:, :, place] = value
        attended = F.scaled_dot_product_attention(
            query[:, :, None], keys[:, :, : place + 1], values[:, :, : place + 1]
        )
        return attended.flatten(1).unflatten(0, (num_streams, num_positions)) @ block.attention_out


def _stack(layers: list[nn.Linear]) -> tuple[Float[Tensor, "S _ _"], Float[Tensor, "S 1 _"]]:
    """Return the weights of linear layers side by side, as factors from the right, and their biases."""
    weights = torch.stack([layer.weight.T for layer in layers])
    return weights, torch.stack([layer.bias for layer in layers])[:, None]


def _stack_narrow(layers: list[nn.Linear]) -> tuple[Float[Tensor, "S _ _"], Float[Tensor, "S 1 _"]]:
    """Do so for layers that read vectors of unlike widths: the narrower ones end in zeros."""
    width = max(layer.in_features for layer in layers)
    padded: list[Tensor] = []
    for layer in layers:
        padded.append(F.pad(layer.weight.T, (0, 0, 0, width - layer.in_features)))
    return torch.stack(padded), torch.stack([layer.bias for layer in layers])[:, None]


def _block_weights(blocks: list[DepthBlock]) -> _BlockWeights:
    def side_by_side(name: str) -> Tensor:
        weights: list[Tensor] = []
        for block in blocks:
            weight = block.get_parameter(f"{name}.weight")
            # As a factor from the right; a norm's has one axis.
            weights.append(weight.T if weight.ndim == 2 else weight)
        return torch.stack(weights)

    num_mlps = len(blocks[0].mlp_up)
    return _BlockWeights(
        attention_norm=side_by_side("attention_norm"),
        qkv=side_by_side("qkv"),
        attention_out=side_by_side("attention_out"),
        mlp_norm=side_by_side("mlp_norm"),
        mlp_up=[side_by_side(f"mlp_up.{place}") for place in range(num_mlps)],
        mlp_down=[side_by_side(f"mlp_down.{place}") for place in range(num_mlps)],
    )


def _rms_norm(states: Float[Tensor, "S P E"], weight: Float[Tensor, "S E"]) -> Float[Tensor, "S P E"]:
    """Normalise as `nn.RMSNorm` does, with weights of each stream's own."""
    return F.rms_norm(states, states.shape[-1:], eps=NORM_EPSILON) * weight[:, None]
