"""Costs counted from shapes are those that torch counts when the networks run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from benchmarks.encode import SEARCHES
from dualtoken.model.config import costs, step_costs
from dualtoken.model.config.costs import Cost
from dualtoken.model.config.tokenizer import NamedTower, TokenizerConfig
from dualtoken.model.config.training import GanConfig, LpipsConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig
from dualtoken.model.teacher.teacher import tower_targets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.discriminator import PatchDiscriminator
from dualtoken.model.training.lpips import Lpips
from dualtoken.model.vision.towers import checkpoint_gradients
from dualtoken.pipelines.config.parse import load_recipe
from tests.helpers.tiny_run import TINY
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config
from tests.model.training.steps import fresh_state, run, training

ATEN = torch.ops.aten
CPU_ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
"""Attention of CPUs, which torch's counter does not know, by its functions for that of GPUs."""


class Counter(TorchDispatchMode):
    """Counts operations by the formulas of torch's own `FlopCounterMode`.

    That one also follows modules, by hooks that gradients of some tensors alone do not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in CPU_ATTENTION:
            shapes = [argument.shape for argument in args if isinstance(argument, torch.Tensor)]
            count = len(shapes) if packet is ATEN._scaled_dot_product_flash_attention_for_cpu else 4
            self.flop += CPU_ATTENTION[packet](*shapes[:count])
        elif packet in SEARCHES:
            self.flop += SEARCHES[packet](*[getattr(one, "shape", one) for one in args], **kwargs)
        elif packet in flop_registry:
            self.flop += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def counted(function: Callable[[], object]) -> int:
    with Counter() as counter:
        function()
    return counter.flop


def config_of(name: str) -> TokenizerConfig:
    if name == "transformer":
        decoder = TransformerDecoderConfig(
            kind="transformer", latent_size=8, patch_size=8, width=96, depth=2, num_heads=3, mlp_width=200
        )
        return load_recipe("scenes").tokenizer.model_copy(update={"decoder": decoder})
    return load_recipe(TINY if name == "tiny" else name).tokenizer


@pytest.mark.parametrize("name", ["tiny", "scenes", "transformer", "arm-shared-8", "paper-384"])
def test_forward_passes_are_counted_to_the_operation(name: str) -> None:
    config = config_of(name)
    size = config.image_size
    with torch.device("meta"), torch.no_grad():
        tokenizer = DualTokenizer(config).eval()
        images = torch.empty(1, 3, size, size)
        vectors = torch.empty(1, config.grid_size**2, config.pixel.width)
        judge = PatchDiscriminator(64)
        network = Lpips()
        runs: dict[str, tuple[Callable[[], object], Cost]] = {
            "encode": (
                lambda: tokenizer.encode(images),
                step_costs.encoder(config) + step_costs.searches(config),
            ),
            "decode": (lambda: tokenizer.decoder(tokenizer._latent(vectors)), step_costs.pictures(config)),
            "meaning": (lambda: tokenizer._semantic_features(vectors, None), step_costs.meaning(config)),
            "teacher": (
                lambda: tower_targets(tokenizer.tower, images, config.semantic_block),
                step_costs.teacher(config),
            ),
            "LPIPS": (lambda: network._features(images), costs.vgg(size)),
            "discriminator": (lambda: judge(images), costs.discriminator(size, 64)),
        }
        assert {run_name: counted(run) for run_name, (run, _) in runs.items()} == {
            run_name: cost.flop for run_name, (_, cost) in runs.items()
        }
    weights = sum(parameter.numel() for parameter in tokenizer.parameters())
    parts = (step_costs.encoder(config), step_costs.pictures(config), step_costs.meaning(config))
    assert 0.94 * weights < costs.total(*parts).weights < weights, "all but norms, biases and positions"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"checkpoint_tower": True},
        {"gan": GanConfig(width=32)},
        {"perceptual": LpipsConfig(kind="lpips")},
        {"gan": GanConfig(width=32), "perceptual": LpipsConfig(kind="lpips")},
    ],
    ids=["plain", "checkpoints", "gan", "lpips", "all"],
)
def test_a_step_of_training_is_counted_within_two_percent(parts: dict[str, Any]) -> None:
    config = tiny_tokenizer_config()
    train = training(**parts)
    network = None
    if "perceptual" in parts:
        network = Lpips()
        for head in network.heads:
            nn.init.uniform_(head)
    state = fresh_state(config, train, network)
    if train.checkpoint_tower:
        checkpoint_gradients(state.tokenizer.tower)
    found = counted(lambda: run(state, 1)) / 4
    expected = sum(part.cost.flop for part in step_costs.training_step(config, train, online=False))
    assert expected == pytest.approx(found, rel=0.02)


def test_a_tower_that_is_only_named_is_not_counted() -> None:
    config = tiny_tokenizer_config()
    named = config.model_copy(update={"tower": NamedTower(model="ViT-B-16-SigLIP")})
    with pytest.raises(ValueError, match=r"tower.model=ViT-B-16-SigLIP has layers that are not counted"):
        step_costs.teacher(named)
