"""A norm keeps the type that it takes, and is PyTorch's in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.group_norm import GroupNorm, group_norm_of, norm_silu
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


def pair(values: Tensor, norm: GroupNorm) -> Tensor:
    """Return SiLU of a norm, as two operations."""
    return F.silu(norm(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_silu_of_a_norm_has_the_bits_of_both_and_so_have_its_gradients(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    found: list[list[Tensor]] = []
    weights = norm().state_dict()
    for function in (pair, norm_silu):
        made = norm()
        made.load_state_dict(weights)
        taken = values().to(dtype).contiguous(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = function(taken, made)
        output.backward(values().flip(0).to(dtype))
        gradients = [taken.grad, made.weight.grad, made.bias.grad]
        found.append([output, *[gradient for gradient in gradients if gradient is not None]])
    assert [tensor.dtype for tensor in found[1]] == [dtype, dtype, torch.float32, torch.float32]
    assert all(torch.equal(ours, theirs) for theirs, ours in zip(*found, strict=True))


def test_gradients_of_silu_of_a_norm_are_those_of_finite_differences() -> None:
    made = norm().double()
    taken = values()[:, :, :2, :3].double().requires_grad_()

    def function(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made.weight = nn.Parameter(weight)
        made.bias = nn.Parameter(bias)
        return norm_silu(values, made)

    assert torch.autograd.gradcheck(lambda taken: function(taken, made.weight, made.bias), (taken,))


def test_silu_of_a_norm_keeps_its_input_and_nothing_else_of_that_size() -> None:
    kept: dict[str, list[int]] = {}
    for name, function in (("pair", pair), ("fused", norm_silu)):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        taken = values().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function(taken, norm())
        kept[name] = [size for size in sizes if size >= taken.numel()]
    assert kept == {"pair": [400, 400], "fused": [400]}
