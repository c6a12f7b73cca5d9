"""State of a run of the tokenizer's training, kept from one step to the next."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualtoken.model.config.training import LpipsConfig, TrainingConfig
from dualtoken.model.optimizer import build_optimizer
from dualtoken.model.precision import tower_precision
from dualtoken.model.tokenizer.conv_blocks import AttnBlock, ResBlock
from dualtoken.model.tokenizer.decoder import Decoder
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.adversary import Adversary
from dualtoken.model.training.losses import Perceptual
from dualtoken.model.training.trainable import freeze, streams_in_training
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.towers import tower_blocks

with vision_imports():
    from timm.models.vision_transformer import Block

COMPILER = "inductor"
"""Backend of torch.compile: it needs Triton on a GPU, a C++ compiler on a CPU."""
Function = TypeVar("Function", bound=Callable[..., Any])


class TrainState:
    """Model, optimisers, averages and the number of steps done.

    It is all that a resumed run needs, but the data's order. `wrap` puts the tokenizer into
    DistributedDataParallel with forward_sync_buffers=False, or shards it in place by FSDP2: the codebooks are
    buffers, and `train_step` keeps them equal on all ranks. `perceptual` is the network of
    `config.perceptual`.

    Raises ValueError if the phase trains nothing of this tokenizer, or cannot keep its streams apart.
    """

    def __init__(
        self,
        tokenizer: DualTokenizer,
        config: TrainingConfig,
        perceptual: nn.Module | None = None,
        *,
        wrap: Callable[[DualTokenizer], nn.Module] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.step = 0
        self.accumulate_steps = config.accumulate_steps
        """Parts that a rank takes its share of a batch in; another number gives the same step."""
        self.streams = streams_in_training(config)
        # This order matters: wrapper and optimiser take those parameters that have gradients at that moment.
        freeze(tokenizer, config)
        self.average = None
        if config.weight_ema:
            # A sharded model cannot be copied any more.
            self.average = AveragedModel(
                tokenizer, multi_avg_fn=get_ema_multi_avg_fn(config.weight_ema.decay)
            )
        self.model = _wrapped(tokenizer, wrap)
        if self.average and wrap and isinstance(self.model, FSDPModule):
            wrap(cast("DualTokenizer", self.average.module))
        self.optimizer = build_optimizer(
            self.tokenizer,
            config.optimizer,
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            groups=config.parameters,
        )

        self.perceptual = None
        if isinstance(config.perceptual, LpipsConfig):
            assert perceptual is not None, "config.perceptual asks for a network"
            self.perceptual = Perceptual(perceptual, config.perceptual.weight)
        self.adversary = None
        if config.gan and self.streams.pixel:
            self.adversary = Adversary(config.gan, steps=config.steps, seed=config.seed, device=self.device)
        if config.memory_format == "channels_last":
            # As the decoder: pictures then keep one layout, and no convolution transposes them.
            for network in (perceptual, self.adversary and self.adversary.discriminator):
                if network is not None:
                    # torch's stub lacks this argument.
                    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.compile == "blocks":
            compile_blocks(tokenizer, self.adversary)
        self._compiled: dict[Callable[..., Any], Any] = {}

    @property
    def result(self) -> DualTokenizer:
        """The model that the steps so far give: the weights' average where there is one."""
        if self.average:
            return cast("DualTokenizer", self.average.module)
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.tokenizer.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and containers of them, for torch.load with weights_only=True."""
        state: dict[str, Any] = {"step": self.step}
        for name, part in self._parts().items():
            state[name] = part.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        The steps that follow are those of a run never stopped, on a CPU to the bit.
        """
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def _parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by name."""
        parts = {
            "model": self.tokenizer,
            "optimizer": self.optimizer,
            "adversary": self.adversary,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def compiled(self, function: Function, *, calls_model: bool = False) -> Function:
        """Return a function of the step as the configuration wants it run: as it stands, or by torch.compile.

        It becomes one graph; if it calls a model that is wrapped or sharded, a few.
        """
        if self.config.compile is not True:
            return function
        if function not in self._compiled:
            is_plain = self.model is self.tokenizer and not isinstance(self.model, FSDPModule)
            one_graph = is_plain or not calls_model
            self._compiled[function] = torch.compile(function, backend=COMPILER, fullgraph=one_graph)
        return self._compiled[function]

    def autocast(self) -> torch.autocast:
        """Return the context of the networks' arithmetic."""
        return tower_precision(self.device, self.config.precision)


def compile_blocks(tokenizer: DualTokenizer, adversary: Adversary | None) -> None:
    """Compile the blocks that a step runs, in place; names of weights stay."""
    blocks: list[nn.Module] = tower_blocks(tokenizer.tower)
    decoder = tokenizer.decoder
    kinds = (ResBlock, AttnBlock) if isinstance(decoder, Decoder) else (Block,)
    blocks += [module for module in decoder.modules() if isinstance(module, kinds)]
    if adversary:
        blocks += list(adversary.discriminator.blocks)
    for block in blocks:
        block.compile(backend=COMPILER, fullgraph=True)


def _wrapped(
    tokenizer: DualTokenizer, wrap: Callable[[DualTokenizer], nn.Module] | None
) -> DualTokenizer | DistributedDataParallel:
    """Return the module that a step calls."""
    if wrap is None:
        return tokenizer
    model = wrap(tokenizer)
    assert isinstance(model, (DualTokenizer, DistributedDataParallel)), f"{type(model)} is no wrapper we know"
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert inner is tokenizer, "the wrapper holds another model"
    return model
