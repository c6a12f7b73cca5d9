"""The decoder's doubling steps by phases against convolving the doubled grid: `python -m benchmarks.decoder [--rounds 5]`.

Both are PyTorch's convolutions in one process, taking turns; a number is a median.
"""

import argparse
import datetime as dt
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import hardware, seconds
from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.tokenizer import decoder as decoders
from dualtoken.model.tokenizer.upsample import upsample_conv

SHAPES = ((64, 16, 32), (64, 32, 16), (64, 64, 8), (4, 128, 96), (1, 512, 48), (1, 1024, 24))
"""Images, channels and side; the first three are of a 64-pixel decoder, the others of the paper's."""
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def directly(grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve the doubled grid."""
    return F.conv2d(F.interpolate(grid, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


FORMS: dict[str, Form] = {"phases": upsample_conv, "direct": directly}


def count() -> dict[str, float]:
    """Return GFLOP of a forward and backward pass of the paper's decoder, per image."""
    with torch.device("meta"):
        decoder, latent = decoders.Decoder(DecoderConfig()), torch.empty(1, 1024, 24, 24, requires_grad=True)
    gflop = {}
    for name, form in FORMS.items():
        decoders.upsample_conv = form
        with FlopCounterMode(display=False) as counter:
            decoder(latent).sum().backward()
        gflop[name] = counter.get_total_flops() / 1e9
    decoders.upsample_conv = upsample_conv
    return gflop


def compare(shape: tuple[int, int, int], device: torch.device, rounds: int) -> str:
    """Return a row: milliseconds forward, and forward and backward, of both forms."""
    images, channels, side = shape
    torch.manual_seed(0)
    grid, weight = (
        torch.randn(*size, device=device, requires_grad=True)
        for size in ((images, channels, side, side), (channels, channels, 3, 3))
    )
    bias = torch.randn(channels, device=device, requires_grad=True)
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for name, form in FORMS.items():
            with torch.no_grad():
                taken.setdefault((name, "forward"), []).append(
                    seconds(lambda form=form: form(grid, weight, bias), device)
                )
            taken.setdefault((name, "both"), []).append(
                seconds(lambda form=form: form(grid, weight, bias).sum().backward(), device)
            )
    middle = {key: 1e3 * statistics.median(times[1:]) for key, times in taken.items()}
    cells = [f"{images} x {channels} x {side} x {side}"]
    for pass_ in ("forward", "both"):
        ours, theirs = middle["phases", pass_], middle["direct", pass_]
        cells.append(f"{ours:9.1f}{theirs:9.1f}{theirs / ours:7.2f}x")
    return f"{cells[0]:>20}{cells[1]}{cells[2]}"


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    gflop, device = count(), torch.device(arguments.device)
    forbid_tf32()
    print(
        f"the paper's decoder, forward and backward: {gflop['direct']:.0f} GFLOP an image directly, {gflop['phases']:.0f} by phases"
    )
    print(
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {hardware(device)}, float32; ms by phases, directly, ratio"
    )
    print(f"{'':20}{'forward':>26}{'with backward':>26}")
    for shape in SHAPES:
        print(compare(shape, device, arguments.rounds))


if __name__ == "__main__":
    main()
