"""Runs in Triton's interpreter, in a process of its own: the fused kernel against differences in float64; prints the cases."""

import torch

from model.quantize.triton_kernel import fused_residual_codes


def brute_force(vectors: torch.Tensor, codes: torch.Tensor, depth: int) -> torch.Tensor:
    ids = []
    for level in range(depth):
        book = codes[min(level, len(codes) - 1)]
        ids.append((vectors.double()[:, None] - book.double()).square().sum(-1).argmin(1))
        vectors = vectors - book[ids[-1]]
    return torch.stack(ids, 1)


def main() -> None:
    torch.manual_seed(0)
    shared, separate = torch.randn(2, 1, 100, 8), torch.randn(2, 2, 70, 20)
    twins = torch.randn(2, 1, 40, 16).repeat(1, 1, 3, 1)  # each code three times, in other lanes
    same_lane = torch.randn(2, 1, 64, 16).repeat(1, 1, 2, 1)  # twice in one lane
    crowded = 100 + 1e-5 * torch.randn(2, 1, 100, 16)  # nearer to each other than float32 products show
    cases = {
        "shared": (torch.randn(2, 20, 8), shared),
        "separate": (torch.randn(2, 20, 20), separate),
        "twins": (torch.randn(2, 17, 16), twins),
        "same_lane": (torch.randn(2, 16, 16), same_lane),
        "crowded": (100 + 1e-5 * torch.randn(2, 16, 16), crowded),
    }
    for name, (vectors, codes) in cases.items():
        expected = torch.stack([brute_force(*stream, 2) for stream in zip(vectors, codes, strict=True)])
        assert torch.equal(fused_residual_codes(vectors, codes, 2), expected), name
    not_a_number = torch.tensor([[[float("nan")] * 8, [1.0] * 8]])
    assert fused_residual_codes(not_a_number, shared[:1], 2)[0, 0].tolist() == [0, 0]
    print(*cases)


if __name__ == "__main__":
    main()
