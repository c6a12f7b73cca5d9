"""Muon: torch's own mathematics, in float32, for the matrices of linear layers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dualtoken.model.config.optimizer import MuonConfig
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.muon import Muon, orthogonalized
from dualtoken.model.optimizer import Optimizers, build_optimizer, set_learning_rate
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.model.training.steps import fresh_state, run, training

SHAPES = ((32, 16), (16, 32), (32, 16), (8, 8))
MUON = training(optimizer="muon")


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_steps_are_those_of_torch_but_for_its_bfloat16() -> None:
    ours = matrices()
    theirs = matrices()
    muon = Muon([{"params": ours}], lr=1e-2, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        muon.step()
        reference.step()
    for matrix, expected, start in zip(ours, theirs, matrices(), strict=True):
        moved = (expected - start).norm()
        assert (matrix - expected).norm() < 0.03 * moved
        assert torch.equal(
            muon.state[matrix]["momentum_buffer"], reference.state[expected]["momentum_buffer"]
        )


def test_a_step_has_the_size_of_one_of_adamw() -> None:
    [matrix, *_] = ours = matrices()
    before = matrix.detach().clone()
    give_gradients(ours, 0)
    Muon([{"params": ours}], lr=1e-2, weight_decay=0.0).step()
    # AdamW's steps have a root mean square of 0.2 to 0.4 times the learning rate (arXiv 2502.16982, 2.2).
    assert (matrix - before).square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.25)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_singular_values_come_near_one_and_their_vectors_stay(shape: tuple[int, int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(given, (3.4445, -4.7750, 2.0315), 5)
    assert found.shape == given.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.4
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    core = left.mT @ found @ right.mT
    off_diagonal = core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-3


def test_a_gradient_of_zeros_and_none_at_all_move_nothing() -> None:
    ours = matrices()
    before = [matrix.detach().clone() for matrix in ours]
    ours[0].grad = torch.zeros_like(ours[0])
    Muon([{"params": ours}], lr=1e-2, weight_decay=0.0).step()
    for matrix, expected in zip(ours, before, strict=True):
        assert torch.equal(matrix, expected)


def test_iterations_multiply_by_the_smaller_side() -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalized(torch.randn(1, 64, 8), (3.4445, -4.7750, 2.0315), 5)
    # Each of 5 iterations: a product of 8 x 64 by 64 x 8, one of 8 x 8 by 8 x 8, one of 8 x 8 by 8 x 64.
    assert counter.get_total_flops() == 5 * 2 * (8 * 64 * 8 + 8 * 8 * 8 + 8 * 8 * 64)


def test_steps_on_a_cpu_are_in_float32() -> None:
    [matrix, *_] = ours = matrices()
    give_gradients(ours, 0)
    before = matrix.detach().clone()
    assert matrix.grad is not None
    # Nesterov's update of the first step: the gradient, and a twentieth of it again by the momentum.
    update = matrix.grad.lerp(0.05 * matrix.grad, 0.95)
    direction = orthogonalized(update[None], (3.4445, -4.7750, 2.0315), 5)[0]
    Muon([{"params": ours}], lr=1e-2, weight_decay=0.0).step()
    expected = before - 0.2 * max(matrix.shape) ** 0.5 * 1e-2 * direction
    torch.testing.assert_close(matrix.detach(), expected, rtol=0, atol=1e-6)


def test_muon_moves_linear_layers_and_adamw_all_else(config: TokenizerConfig) -> None:
    tokenizer = DualTokenizer(config)
    optimizer = build_optimizer(
        tokenizer, MuonConfig(kind="muon"), learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.1
    )
    assert isinstance(optimizer, Optimizers)
    adamw, muon = optimizer.parts
    by_muon = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    names = {name for name, parameter in tokenizer.named_parameters() if id(parameter) in by_muon}
    assert "tower.blocks.0.attn.qkv.weight" in names
    assert "reduce_pixel.proj.weight" in names
    assert not {"tower.pos_embed", "tower.attn_pool.latent", "decoder.conv_out.weight"} & names
    num_by_adamw = sum(len(group["params"]) for group in adamw.param_groups)
    assert num_by_adamw + len(by_muon) == len(list(tokenizer.parameters()))


def test_tables_that_are_looked_up_are_no_matrices() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    optimizer = build_optimizer(
        model, MuonConfig(kind="muon"), learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.1
    )
    assert isinstance(optimizer, Optimizers)
    [group] = optimizer.parts[1].param_groups
    assert [parameter.shape for parameter in group["params"]] == [(4, 4)]


def test_matrices_have_the_rate_that_is_set_for_them(config: TokenizerConfig) -> None:
    tokenizer = DualTokenizer(config)
    settings = MuonConfig(kind="muon", learning_rate=0.5)
    optimizer = build_optimizer(tokenizer, settings, learning_rate=2.0, betas=(0.9, 0.9), weight_decay=0.1)
    set_learning_rate(optimizer, 1.0)
    assert isinstance(optimizer, Optimizers)
    adamw, muon = optimizer.parts
    assert {group["lr"] for group in adamw.param_groups} == {1.0}
    assert {group["lr"] for group in muon.param_groups} == {0.25}


def test_a_resumed_run_takes_the_steps_of_one_never_stopped(config: TokenizerConfig) -> None:
    whole = fresh_state(config, MUON)
    run(whole, 6)
    stopped = fresh_state(config, MUON)
    run(stopped, 3)
    resumed = fresh_state(config, MUON)
    resumed.load_state_dict(stopped.state_dict())
    run(resumed, 3)
    for name, tensor in whole.tokenizer.state_dict().items():
        assert torch.equal(resumed.tokenizer.state_dict()[name], tensor), name


def test_training_learns(config: TokenizerConfig) -> None:
    metrics = run(fresh_state(config, MUON), 20)
    assert metrics[-1].loss < 0.7 * metrics[0].loss
