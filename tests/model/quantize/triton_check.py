"""Compares the fused kernel with differences in float64 and with the search of a CPU; prints the cases.

Runs in Triton's interpreter, in a process of its own, or on the device that is given: `--device cuda`.
"""

import argparse

import torch

from dualtoken.model.quantize import triton_kernel
from dualtoken.model.quantize.residual_search import residual_codes
from dualtoken.model.quantize.triton_kernel import fused_residual_codes

ROUNDED = ("small_codes", "permuted")
"""Cases that the order of float64 additions decides; the kernel's order is that of the CPU's search."""


def brute_force(vectors: torch.Tensor, codes: torch.Tensor, depth: int) -> torch.Tensor:
    ids = []
    for level in range(depth):
        book = codes[min(level, len(codes) - 1)]
        ids.append((vectors.double()[:, None] - book.double()).square().sum(-1).argmin(1))
        vectors = vectors - book[ids[-1]]
    return torch.stack(ids, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)

    def fused(vectors: torch.Tensor, codes: torch.Tensor, depth: int) -> torch.Tensor:
        return fused_residual_codes(vectors.to(device), codes.to(device), depth).cpu()

    torch.manual_seed(0)
    shared = torch.randn(2, 1, 300, 8)
    separate = torch.randn(2, 2, 70, 20)
    row = torch.randn(16)
    lengths = torch.logspace(-4, 1, 300)[:, None]
    axis = torch.eye(8)[0]
    cases = {
        "shared": (torch.randn(2, 20, 8), shared),
        "separate": (torch.randn(2, 20, 20), separate),
        "wide": (torch.randn(2, 5, 64), torch.randn(2, 1, 130, 64)),
        "one_code": (torch.randn(2, 3, 8), shared[:, :, :1]),
        "twins": (
            torch.randn(2, 17, 16),
            torch.randn(2, 1, 40, 16).repeat(1, 1, 3, 1),
        ),  # each code three times, in other lanes
        "same_lane": (
            torch.randn(2, 16, 16),
            torch.randn(2, 1, 128, 16).repeat(1, 1, 2, 1),
        ),  # twice in one lane
        "all_lengths": (0.01 * torch.randn(2, 20, 8), lengths * torch.randn(2, 1, 300, 8)),
        "close": (
            1 + 1e-3 * torch.randn(2, 16, 16),
            1 + 1e-3 * torch.randn(2, 1, 300, 16),
        ),  # nearer than halves show
        "crowded": (
            100 + 1e-5 * torch.randn(2, 16, 16),
            100 + 1e-5 * torch.randn(2, 1, 100, 16),
        ),  # nearer than float32 shows
        "huge": (1e20 * torch.randn(2, 16, 8), 1e20 * shared),
        "square_too_large": (
            1e19 * axis.expand(2, 3, 8),
            torch.tensor([-2e19, 2.7e19, -1e19])[:, None] * axis.expand(2, 1, 3, 8),
        ),
        "small_codes": (1e20 * torch.randn(2, 16, 8), shared),
        "permuted": (
            torch.zeros(2, 2, 16),
            torch.stack([row[torch.randperm(16)] for _ in range(120)]).view(2, 1, 60, 16),
        ),
        "tiny": (1e-22 * torch.randn(2, 16, 8), 1e-22 * shared),
        "small_of_large": (1e-12 * torch.randn(2, 16, 8), torch.cat((shared, 1e-12 * shared), dim=2)),
        "zeros": (torch.zeros(2, 4, 8), torch.zeros(2, 1, 5, 8)),
    }
    for name, (vectors, codes) in cases.items():
        found = fused(vectors, codes, 2)
        assert torch.equal(found, residual_codes(vectors, codes, 2, 1)), name
        if name not in ROUNDED:
            for stream in range(2):
                assert torch.equal(found[stream], brute_force(vectors[stream], codes[stream], 2)), name
    for value in (float("nan"), float("inf")):
        not_finite = torch.tensor([[[value] * 8, [1.0] * 8]])
        found = fused(not_finite, shared[:1], 2)
        assert found[0, 0].tolist() == [0, 0], value
        assert torch.equal(found, residual_codes(not_finite, shared[:1], 2, 1)), value
    triton_kernel._num_processors = lambda _: 1  # 64 rows to a program
    vectors = torch.randn(2, 70, 8)
    assert torch.equal(fused(vectors, shared, 2), residual_codes(vectors, shared, 2, 1))
    print(*cases, "not_finite", "large_programs")


if __name__ == "__main__":
    main()
