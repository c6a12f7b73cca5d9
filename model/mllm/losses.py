"""Losses of packed documents: of text, and of both streams' codes, as sums with their counts.

Sums are divided by the counts of the whole step, over all ranks and micro-batches: means of micro-batches
would weigh a target by where it happens to stand. T text targets, V image positions, P of them whose codes
are targets, D depths, K codes or text ids, E channels of the state that predicts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from dualtoken.model.config.mllm import MllmLossWeights
from dualtoken.model.config.mllm_costs import StepSize
from dualtoken.model.mllm.depth_heads import DepthHead
from dualtoken.model.mllm.modeling import UnifiedModel
from dualtoken.model.mllm.segments import Segments

MOST_LOGITS = 2**24
"""Logits that are computed at once, 64 MB of them in float32."""


class MllmBatch(NamedTuple):
    """Packed documents and what is to be predicted in them: B sequences of T positions."""

    input_ids: Int[Tensor, "B T"]
    """Text ids; those of image positions are not read."""
    is_visual: Bool[Tensor, "B T"]
    """Image positions."""
    codes: Mapping[str, Integer[Tensor, "V D"]]
    """Codes of the image positions in order, by stream."""
    segments: Segments
    """Bounds of the documents, or of their turns, and what each reads."""
    text_targets: Bool[Tensor, "B T"]
    """Positions whose id is to be predicted; never the first one of a document."""
    visual_targets: Bool[Tensor, "V"]
    """Image positions whose codes are to be predicted."""
    all_depths: Bool[Tensor, "V"]
    """Image positions whose codes are trained at all depths; of the other targets only the first depth is."""
    unread: Bool[Tensor, "V"] | None = None
    """Image positions whose codes the trunk does not read, though they may be targets; None for none."""


def step_size(batch: MllmBatch) -> StepSize:
    """Return what a batch has to compute, by which its cost is counted; cheap for tensors on a CPU."""
    lengths = batch.segments.lengths().long()
    read = lengths + batch.segments.prefix_lengths()
    return StepSize(
        positions=batch.input_ids.numel(),
        attended=int((lengths * read).sum()),
        text_targets=int(batch.text_targets.sum()),
        visual=int(batch.is_visual.sum()),
        visual_targets=int(batch.visual_targets.sum()),
        all_depths=int((batch.all_depths & batch.visual_targets).sum()),
    )


class TargetCounts(NamedTuple):
    """Numbers of targets of a step, over all ranks and micro-batches."""

    text: int
    """Text ids."""
    visual: int
    """Image positions; each has D codes of each stream."""


class LossSums(NamedTuple):
    """Summed losses of a batch."""

    total: Float[Tensor, ""]
    """Sum of weighted means, given the step's counts: what is differentiated."""
    terms: dict[str, Float[Tensor, ""]]
    """This batch's part of each mean, by name: text, semantic, pixel; detached."""


class PackedLosses(nn.Module):
    """The model with its losses, so that they are computed inside of what DDP or FSDP2 wraps."""

    def __init__(self, model: UnifiedModel, weights: MllmLossWeights, depth_share: float = 1.0) -> None:
        """Weigh the losses; `depth_share` is the expected share of targets that are in `all_depths`."""
        super().__init__()
        self.model = model
        self.weights = weights
        self.depth_share = depth_share

    def forward(self, batch: MllmBatch, counts: TargetCounts) -> LossSums:
        """Return the losses of a batch that is part of a step with these counts."""
        hidden = self.model.hidden_states(
            batch.input_ids, batch.is_visual, dict(batch.codes), batch.segments, batch.unread
        ).flatten(0, 1)
        text_ids = batch.input_ids.flatten()
        places = batch.text_targets.flatten().nonzero().squeeze(1)
        losses = target_losses(
            hidden[places - 1], self.model.lm_head.weight, text_ids[places], self.weights.z
        )
        text = losses.sum() / max(1, counts.text)
        terms = {"text": text}
        visual = batch.is_visual.flatten().nonzero().squeeze(1)
        before = hidden[visual[batch.visual_targets] - 1]
        all_depths = batch.all_depths[batch.visual_targets]
        for stream in self.model.config.targets:
            codes = batch.codes[stream][batch.visual_targets]
            by_position = self._code_losses(stream, before, codes, all_depths)
            sum_of_weights = 1 + (self.model.config.depth - 1) * self.weights.later_depths
            terms[stream] = by_position / (max(1, counts.visual) * sum_of_weights)
        total = torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()
        return LossSums(total, {name: term.detach() for name, term in terms.items()})

    def _code_losses(
        self,
        stream: str,
        hidden: Float[Tensor, "P H"],
        codes: Integer[Tensor, "P D"],
        all_depths: Bool[Tensor, "P"],
    ) -> Float[Tensor, ""]:
        """Return the losses of a stream's codes, summed over positions and depths, weighted by depth.

        Depths beyond the first are computed for some positions only, and count as many times more.
        """
        head = self.model.head(stream)
        ids = codes.long()
        sums = self.model.model.code_vectors(stream)(codes[all_depths])
        whole = head(hidden[all_depths], sums[:, :-1])
        first = head(hidden[~all_depths], sums.new_zeros(int((~all_depths).sum()), 0, sums.shape[-1]))
        loss = self._depth_losses(head, 0, torch.cat([whole[:, 0], first[:, 0]]), _joined(ids, all_depths))
        for place in range(1, self.model.config.depth):
            of_depth = self._depth_losses(head, place, whole[:, place], ids[all_depths, place])
            loss = loss + of_depth * (self.weights.later_depths / self.depth_share)
        return loss

    def _depth_losses(
        self, head: DepthHead, place: int, states: Float[Tensor, "P E"], ids: Int[Tensor, "P"]
    ) -> Float[Tensor, ""]:
        weight = head.classifier_weights()[place]
        return target_losses(states, weight, ids, self.weights.z).sum()


def _joined(ids: Int[Tensor, "P D"], all_depths: Bool[Tensor, "P"]) -> Int[Tensor, "P"]:
    """Return the first codes of positions, those with all depths before the others."""
    return torch.cat([ids[all_depths, 0], ids[~all_depths, 0]])


def target_losses(
    states: Float[Tensor, "P E"], weight: Float[Tensor, "K E"], ids: Int[Tensor, "P"], z_weight: float = 0.0
) -> Float[Tensor, "P"]:
    """Return the cross-entropy of each target in float32, with `z_weight` times its squared log-partition.

    Many logits are never all in memory: torch computes them in chunks, which of few would cost time alone.
    """
    options = None
    if len(states) * weight.shape[0] > MOST_LOGITS:
        # The policies that torch advises; others emulate bfloat16 on a CPU.
        policy = "balanced" if states.is_cuda else "auto"
        options = torch.nn.LinearCrossEntropyOptions(acc_policy=policy)
    losses = F.linear_cross_entropy(states, weight, ids, reduction="none", options=options).float()
    if z_weight:
        # The log-partition is the loss plus the target's own logit.
        own_logits = (states.float() * F.embedding(ids, weight).float()).sum(dim=1)
        losses = losses + z_weight * (losses + own_logits).square()
    return losses
