"""The decoder's doubling steps by phases against convolving the doubled grid.

Run: python -m benchmarks.decoder [--rounds 5]. Both are PyTorch's convolutions in one process, taking turns;
a number is a median.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import default_device, hardware, seconds_in_turn, today
from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.tokenizer import decoder as decoder_module
from dualtoken.model.tokenizer.upsample import upsample_conv

SHAPES = ((64, 16, 32), (64, 32, 16), (64, 64, 8), (4, 128, 96), (1, 512, 48), (1, 1024, 24))
"""Images, channels and side; the first three are of a 64-pixel decoder, the others of the paper's."""
Form = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of a grid, a weight and a bias."""


def directly(grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve the doubled grid."""
    doubled = F.interpolate(grid, scale_factor=2.0, mode="nearest")
    return F.conv2d(doubled, weight, bias, padding=1)


FORMS: dict[str, Form] = {"phases": upsample_conv, "direct": directly}


def count() -> dict[str, float]:
    """Return GFLOP of a forward and backward pass of the paper's decoder, per image, by form."""
    with torch.device("meta"):
        decoder = decoder_module.Decoder(DecoderConfig())
        latent = torch.empty(1, 1024, 24, 24, requires_grad=True)
    gflop: dict[str, float] = {}
    for name, form in FORMS.items():
        decoder_module.upsample_conv = form
        with FlopCounterMode(display=False) as counter:
            decoder(latent).sum().backward()
        gflop[name] = counter.get_total_flops() / 1e9
    decoder_module.upsample_conv = upsample_conv
    return gflop


def compare(shape: tuple[int, int, int], device: torch.device, rounds: int) -> str:
    """Return a row: milliseconds forward, and forward and backward, of both forms."""
    images, channels, side = shape
    torch.manual_seed(0)
    grid = torch.randn(images, channels, side, side, device=device, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(channels, device=device, requires_grad=True)
    runs: dict[str, Callable[[], object]] = {}
    for name, form in FORMS.items():
        runs[f"{name}, forward"] = _forward(form, grid, weight, bias)
        runs[f"{name}, both"] = _forward_and_backward(form, grid, weight, bias)
    times = seconds_in_turn(runs, device, rounds)
    row = f"{f'{images} x {channels} x {side} x {side}':>20}"
    for passes in ("forward", "both"):
        by_phases = 1e3 * statistics.median(times[f"phases, {passes}"])
        direct = 1e3 * statistics.median(times[f"direct, {passes}"])
        row += f"{by_phases:9.1f}{direct:9.1f}{direct / by_phases:7.2f}x"
    return row


def _forward(form: Form, grid: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: form(grid, weight, bias))


def _forward_and_backward(form: Form, grid: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], object]:
    return lambda: form(grid, weight, bias).sum().backward()


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    gflop = count()
    forbid_tf32()
    print("the paper's decoder, forward and backward: ", end="")
    print(f"{gflop['direct']:.0f} GFLOP an image directly, {gflop['phases']:.0f} by phases")
    print(f"{today()}, {hardware(device)}, float32; ms by phases, directly, ratio")
    print(f"{'':20}{'forward':>26}{'with backward':>26}")
    for shape in SHAPES:
        print(compare(shape, device, arguments.rounds))


if __name__ == "__main__":
    main()
