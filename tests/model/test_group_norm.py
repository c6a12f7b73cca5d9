"""A norm keeps the type that it takes, and is PyTorch's in float32."""

import torch
from torch import nn

from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.group_norm import GroupNorm, group_norm_of
from dualtoken.model.tokenizer.decoder import Decoder
from dualtoken.model.training.discriminator import PatchDiscriminator


def values() -> torch.Tensor:
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def norm() -> GroupNorm:
    made = GroupNorm(4, 8, eps=1e-6)
    nn.init.uniform_(made.weight, 0.5, 2)
    nn.init.uniform_(made.bias, -1, 1)
    return made


def test_in_float32_it_is_pytorchs() -> None:
    ours = norm()
    theirs = nn.GroupNorm(4, 8, eps=1e-6)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(values()), theirs(values()))


def test_bfloat16_goes_in_and_comes_out_and_differs_by_its_rounding_alone() -> None:
    ours = norm()
    half = values().bfloat16().requires_grad_()
    found = group_norm_of(half, ours)
    assert found.dtype == torch.bfloat16
    expected = ours(half.detach().float())
    assert (found.float() - expected).abs().max() < 2**-7 * expected.abs().max()
    found.float().square().sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert ours.weight.grad is not None
    assert ours.weight.grad.dtype == torch.float32


def test_under_autocast_a_device_without_our_care_would_widen_every_norm() -> None:
    """On `meta`, as on a GPU, the type that comes out is the type that goes in."""
    with torch.device("meta"):
        found = GroupNorm(4, 8)(torch.empty(2, 8, 5, 5, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16


def test_decoder_and_discriminator_have_no_other_norm() -> None:
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(latent_size=24, norm_groups=32))
        discriminator = PatchDiscriminator()
    for network in (decoder, discriminator):
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert norms
        assert all(isinstance(module, GroupNorm) for module in norms)
