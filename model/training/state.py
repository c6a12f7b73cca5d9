"""All that a run of the tokenizer's training holds from one step to the next."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._functorch import config as functorch_config
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualtoken.model.config.training import LpipsConfig, TrainingConfig
from dualtoken.model.optimizer import build_optimizer
from dualtoken.model.precision import tower_precision
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.adversary import Adversary
from dualtoken.model.training.losses import Perceptual
from dualtoken.model.training.trainable import freeze, streams_in_training

COMPILER = "inductor"
"""Backend of torch.compile: it needs Triton on a GPU, a C++ compiler on a CPU."""
Function = TypeVar("Function", bound=Callable[..., Any])


class TrainState:
    """Model, optimisers, averages and the number of steps done: all that a resumed run needs, but the data's order.

    Under DistributedDataParallel call `stages.freeze` first, then wrap with forward_sync_buffers=False: the codebooks are
    buffers, and `train_step` keeps them equal on all ranks. `perceptual` is the network of `settings.perceptual`.
    """

    def __init__(
        self,
        model: DualTokenizer | DistributedDataParallel,
        settings: TrainingConfig,
        perceptual: nn.Module | None = None,
    ) -> None:
        self.model, self.settings, self.step = model, settings, 0
        self.streams = streams_in_training(settings)
        before = _trained(model)
        freeze(self.tokenizer, settings)
        assert before == _trained(model) or isinstance(model, DualTokenizer), (
            "freeze the tokenizer before it is wrapped"
        )
        self.optimizer = build_optimizer(
            model,
            learning_rate=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.perceptual = None
        if isinstance(settings.perceptual, LpipsConfig):
            assert perceptual is not None, "settings.perceptual asks for a network"
            self.perceptual = Perceptual(perceptual, settings.perceptual.weight)
        self.adversary = None
        if settings.gan and self.streams.pixel:
            self.adversary = Adversary(
                settings.gan, steps=settings.steps, seed=settings.seed, device=self.device
            )
        self.average = None
        if settings.weight_ema:
            self.average = AveragedModel(
                self.tokenizer, multi_avg_fn=get_ema_multi_avg_fn(settings.weight_ema.decay)
            )
        self._compiled: dict[Callable[..., Any], Any] = {}

    @property
    def tokenizer(self) -> DualTokenizer:
        """The model itself, out of any wrapper."""
        return (
            cast("DualTokenizer", self.model.module)
            if isinstance(self.model, DistributedDataParallel)
            else self.model
        )

    @property
    def result(self) -> DualTokenizer:
        """The model that the steps so far give: the weights' average where there is one."""
        return cast("DualTokenizer", self.average.module) if self.average else self.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.tokenizer.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and containers of them: torch.load reads them back with weights_only=True."""
        return {"step": self.step} | {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the steps that follow are those of a run never stopped, on a CPU to the bit."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.tokenizer,
            "optimizer": self.optimizer,
            "adversary": self.adversary,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def compiled(self, function: Function, *, calls_model: bool = False) -> Function:
        """Return a function of the step as the settings want it run: as it stands, or by torch.compile.

        It becomes one graph; if it calls the model, which among several workers DistributedDataParallel wraps, a few.
        """
        if not self.settings.compile:
            return function
        if function not in self._compiled:
            # The adaptive weight of a GAN goes through a graph twice, whose buffers may not be given away then.
            functorch_config.donated_buffer = False
            self._compiled[function] = torch.compile(
                function, backend=COMPILER, fullgraph=self.model is self.tokenizer or not calls_model
            )
        return self._compiled[function]

    def autocast(self) -> torch.autocast:
        """Return the context of the networks' arithmetic."""
        return tower_precision(self.device, self.settings.precision)


def _trained(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]
