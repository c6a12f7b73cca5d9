"""Training steps: exact resume, equal ranks, refused steps, and a loss that must not move."""

from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from model.config import TokenizerConfig
from model.losses import TeacherTargets
from model.optimizer import build_optimizer, learning_rate_at
from model.tokenizer import DualTokenizer
from model.training import TrainMetrics, TrainState, train_step
from model.training_config import GanConfig, LpipsConfig, NoPerceptual, Stage, WeightEmaConfig


class Weights(NamedTuple):
    reconstruction: float = 5.0
    semantic: float = 5.0
    pooled: float = 1.0
    commitment: float = 5.0


class Settings(NamedTuple):
    steps: int = 20
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    warmup_steps: int = 3
    precision: Literal["float32", "bfloat16"] = "float32"
    stage: Stage = 1
    freeze_tower: bool = False
    losses: Weights = Weights()
    perceptual: NoPerceptual | LpipsConfig = NoPerceptual(kind="none")
    gan: GanConfig | None = None
    weight_ema: WeightEmaConfig | None = None
    accumulate_steps: int = 1
    max_gradient_norm: float | None = None
    seed: int = 0


def fresh_state(config: TokenizerConfig, settings: Settings | None = None) -> TrainState:
    torch.manual_seed(0)
    return TrainState(DualTokenizer(config), settings or Settings())


def batch(step: int, config: TokenizerConfig) -> tuple[Tensor, TeacherTargets]:
    generator = torch.Generator().manual_seed(100 + step)
    size, width = config.image_size, config.tower.width
    # Smooth pictures, which a tiny model can learn in a few steps.
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 3, generator=generator) * 2 - 1, size=(size, size), mode="bilinear")
    direction = torch.linspace(-1, 1, width)
    dense = images.mean((1, 2, 3))[:, None, None] + direction.expand(4, config.grid_size**2, width)
    return images, TeacherTargets(pooled=dense.mean(1), dense=dense)


def run(state: TrainState, steps: int) -> list[TrainMetrics]:
    return [train_step(state, *batch(state.step, state.tokenizer.config)) for _ in range(steps)]


def test_twenty_steps_give_the_pinned_loss(config: TokenizerConfig) -> None:
    losses = [metrics.loss for metrics in run(fresh_state(config), 20)]
    # Kernels of other CPUs round otherwise; a change of the mathematics moves far more than this.
    assert losses[0] == pytest.approx(18.67218, rel=1e-3)
    assert losses[-1] == pytest.approx(2.25895, rel=2e-2)


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(config: TokenizerConfig, tmp_path: Path) -> None:
    whole = fresh_state(config)
    run(whole, 4)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = run(whole, 3)
    torch.manual_seed(99)
    resumed = TrainState(DualTokenizer(config), Settings())
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(resumed, 3) == expected
    ours, theirs = resumed.tokenizer.state_dict(), whole.tokenizer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(config: TokenizerConfig) -> None:
    state = fresh_state(config)
    before = {name: tensor.clone() for name, tensor in state.tokenizer.state_dict().items()}
    images, targets = batch(0, config)
    with pytest.raises(FloatingPointError, match=r"step 0 has loss nan .*: lower train\.learning_rate"):
        train_step(state, images, targets._replace(pooled=targets.pooled * torch.nan))
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tokenizer.state_dict().items())


def test_bfloat16_trains_the_trunk_and_keeps_codebooks_in_float32(config: TokenizerConfig) -> None:
    state = fresh_state(config, Settings(precision="bfloat16"))
    metrics = run(state, 3)
    assert metrics[0].loss == pytest.approx(run(fresh_state(config), 1)[0].loss, rel=0.02)
    assert metrics[0].loss != run(fresh_state(config), 1)[0].loss
    assert state.tokenizer.quantize_pixel.codes.dtype == torch.float32


def test_each_term_counts_by_its_weight(config: TokenizerConfig) -> None:
    metrics = run(fresh_state(config), 1)[0]
    figures = metrics.present()
    assert set(figures) == {"loss", "reconstruction", "semantic", "pooled", "commitment", "gradient_norm", "learning_rate"}
    weights = Weights()._asdict()
    assert metrics.loss == pytest.approx(sum(weight * figures[name] for name, weight in weights.items()))


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [learning_rate_at(step, peak=2.0, warmup_steps=4, steps=12) for step in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[12] == 0.0


def test_weight_decay_spares_biases_norms_and_positions(config: TokenizerConfig) -> None:
    tokenizer = DualTokenizer(config)
    optimizer = build_optimizer(tokenizer, learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.1)
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    spared = {name for name, parameter in tokenizer.named_parameters() if id(parameter) not in decayed}
    assert {"tower.pos_embed", "tower.attn_pool.latent", "tower.blocks.0.attn.qkv.bias", "decoder.norm_out.weight"} <= spared
    assert "decoder.conv_in.weight" not in spared
    assert "tower.blocks.0.attn.qkv.weight" not in spared


def one_rank(rank: int, config: TokenizerConfig, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    single = fresh_state(config)
    state = TrainState(DistributedDataParallel(single.tokenizer, broadcast_buffers=False), Settings())
    for step in range(2):
        images, targets = batch(step, config)
        half = slice(rank * 2, rank * 2 + 2)
        train_step(state, images[half], TeacherTargets(targets.pooled[half], targets.dense[half]))
    torch.save(state.tokenizer.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_one(config: TokenizerConfig, tmp_path: Path) -> None:
    single = fresh_state(config)
    run(single, 2)
    start_processes(one_rank, args=(config, str(tmp_path)), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, expected in single.tokenizer.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
