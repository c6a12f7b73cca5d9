"""The phases are the convolution of the doubled grid."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.tokenizer.decoder import Decoder
from dualtoken.model.tokenizer.upsample import upsample_conv


def directly(grid: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.interpolate(grid, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def values(channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    grid = torch.randn(2, channels, height, width)
    weight = torch.randn(6, channels, 3, 3) / channels
    bias = torch.randn(6)
    return grid.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("shape", [(5, 4, 4), (8, 1, 1), (3, 7, 2), (16, 24, 24)])
def test_phases_give_the_same_grid_and_the_same_gradients(shape: tuple[int, int, int]) -> None:
    inputs = values(*shape)
    phases = upsample_conv(*inputs)
    direct = directly(*inputs)
    torch.testing.assert_close(phases, direct, atol=1e-5, rtol=1e-5)
    output_gradient = torch.randn_like(direct)
    found = torch.autograd.grad(phases, inputs, output_gradient)
    expected = torch.autograd.grad(direct, inputs, output_gradient)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_channels_last_stay_last() -> None:
    grid, weight, bias = values(8, 4, 6)
    last = upsample_conv(grid.contiguous(memory_format=torch.channels_last), weight, bias)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, upsample_conv(grid, weight, bias))


def test_phases_save_507_gflop_of_a_training_step_of_the_paper_s_decoder() -> None:
    flops = {}
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig())
        latent = torch.empty(1, 1024, 24, 24, requires_grad=True)
    for form in (upsample_conv, directly):
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr("dualtoken.model.tokenizer.decoder.upsample_conv", form)
            decoder(latent).sum().backward()
        flops[form] = counter.get_total_flops() / 1e9
    assert flops[directly] == pytest.approx(3 * 1153, rel=0.003)
    assert flops[directly] - flops[upsample_conv] == pytest.approx(507, abs=1)


@pytest.mark.slow
def test_the_decoder_compiles_without_a_break_and_takes_channels_last() -> None:
    # A process of its own: the checks of shapes in these tests are no part of a graph.
    script = """
import torch
from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.tokenizer.decoder import Decoder

torch.manual_seed(0)
config = DecoderConfig(
    latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4
)
decoder = Decoder(config)
latent = torch.randn(2, 16, 4, 4)
plain = decoder(latent)
torch.testing.assert_close(torch.compile(decoder, fullgraph=True, backend="eager")(latent), plain)
other = decoder.to(memory_format=torch.channels_last)(latent.contiguous(memory_format=torch.channels_last))
torch.testing.assert_close(other, plain, atol=1e-5, rtol=1e-5)
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[3], timeout=200
    )
