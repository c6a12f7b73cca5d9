"""One codebook on CPU at the size of the 384-pixel model, against peers and the matrix product alone.

All run in one process. Run: python -m benchmarks.quantizer (needs the `bench` extra). Repeats are
interleaved, so that other load hits all alike; on one thread (OMP_NUM_THREADS=1) times are of the process's
own work, medians in either case.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_memory
from benchmarks.models import seconds_in_turn
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.quantize import ResidualQuantizer

TOKENS = 729
CODES = 16384
WIDTH = 32
DEPTH = 8
CHECKED = 64
"""Number of tokens whose ids are compared with float64's."""
TILE = 64
"""Rows of a matrix product that stays in the cache."""
CUBE = 1024


def main() -> None:
    """Print medians, ratios, memory and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    quantizer, tokens = trained()
    runs = contestants(quantizer, tokens)
    memory = {name: peak_memory(run) for name, run in runs.items()}
    times = seconds_in_turn(runs, torch.device("cpu"), repeats, warm_up=False)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    clock = "CPU ms" if torch.get_num_threads() == 1 else "wall ms"
    print(f"{TOKENS} tokens, {CODES} codes, {WIDTH} channels, {DEPTH} depths; ", end="")
    print(f"{torch.get_num_threads()} threads, {repeats} repeats")
    print(f"{'':42}{clock:>10}{'over ours':>11}{'extra MB':>10}")
    for name, median in medians.items():
        ours = medians["ours, training step" if "training" in name else "ours, encode"]
        print(f"{name:42}{median * 1e3:10.1f}{median / ours:11.2f}{memory[name]:10.0f}")
    _print_floors(medians)
    checked = tokens[:, :CHECKED]
    share = agreement(checked[0], quantizer.codes, quantizer.encode(checked)[0])
    print(f"ids of {CHECKED} tokens that float64 brute force gives, too: {share:.4%}")


def _print_floors(medians: dict[str, float]) -> None:
    """Print how many times as long encoding takes as its matrix products alone."""
    encode = medians["ours, encode"]
    tiles = medians["floor: product of this shape, in tiles"]
    flop_per_second = 2 * CUBE**3 / medians["(product of 1024 by 1024 by 1024)"]
    rate_floor = 2 * TOKENS * CODES * WIDTH * DEPTH / flop_per_second
    print(f"ours, encode, over the floor: {encode / tiles:.2f} by this shape's product,", end=" ")
    print(f"{encode / rate_floor:.2f} by the 1024-cube's rate ({rate_floor * 1e3:.1f} ms)")


def trained() -> tuple[ResidualQuantizer, Tensor]:
    """Return a codebook moved by a few steps on a mixture of Gaussians, and tokens of that mixture.

    The tokens are (1, TOKENS, WIDTH).
    """
    centers = torch.randn(256, WIDTH)
    scale = torch.linspace(1.5, 0.2, WIDTH)

    def sample(num_tokens: int) -> Tensor:
        chosen = centers[torch.randint(256, (1, num_tokens))]
        return (chosen + 0.5 * torch.randn(1, num_tokens, WIDTH)) * scale

    config = QuantizerConfig(num_codes=CODES, depth=DEPTH, width=WIDTH, decay=0.5, restart_below=0.5)
    quantizer = ResidualQuantizer(config)
    for step in range(4):
        quantizer.update(quantizer(sample(4096)), torch.Generator().manual_seed(step))
    return quantizer, sample(TOKENS)


def contestants(quantizer: ResidualQuantizer, tokens: Tensor) -> dict[str, Callable[[], object]]:
    """Return the functions that are timed.

    Training steps include moving the codebook, since the peers do so in their forward.
    """
    # 16,384 codes restarted at 5,832 vectors, step after step, pile up in few places: those are `crowded`.
    without_restarts = _like(quantizer, restart_below=None)
    with_beam = _like(quantizer, beam=4)
    crowded = _crowded(tokens)
    peer_in_eval = _peer(quantizer).eval()
    peer_in_training = _peer(quantizer)
    codes = quantizer.codes
    vectors = tokens[0]
    cube = torch.randn(CUBE, CUBE)
    return {
        "ours, encode": lambda: quantizer.encode(tokens),
        "ours, encode, beam of 4": lambda: with_beam.encode(tokens),
        "ours, training step": lambda: without_restarts.update(without_restarts(tokens), torch.Generator()),
        "ours, training step, crowded codes": lambda: crowded.update(
            crowded(tokens), torch.Generator().manual_seed(4)
        ),
        "vector-quantize-pytorch, eval": lambda: peer_in_eval(tokens),
        "vector-quantize-pytorch, training forward": lambda: peer_in_training(tokens),
        "full distances, one-hot, eval": lambda: full_distances(vectors, codes, move=False),
        "full distances, one-hot, training": lambda: full_distances(vectors, codes, move=True),
        "floor: product of this shape, in tiles": lambda: _products_in_tiles(vectors, codes),
        "floor: product of this shape, whole": lambda: [vectors @ codes.T for _ in range(DEPTH)],
        "(product of 1024 by 1024 by 1024)": lambda: cube @ cube,
    }


def _like(quantizer: ResidualQuantizer, **changes: object) -> ResidualQuantizer:
    """Return a quantizer with the same codes and some other settings."""
    other = ResidualQuantizer(quantizer.config.model_copy(update=changes))
    other.load_state_dict(quantizer.state_dict())
    return other


def _crowded(tokens: Tensor) -> ResidualQuantizer:
    """Return a quantizer whose codes were restarted at few vectors, and lie close together."""
    config = QuantizerConfig(num_codes=CODES, depth=DEPTH, width=WIDTH, restart_below=1.0)
    quantizer = ResidualQuantizer(config)
    for step in range(4):
        quantizer.update(quantizer(tokens), torch.Generator().manual_seed(step))
    return quantizer


def _peer(quantizer: ResidualQuantizer) -> nn.Module:
    """Return the peer's quantizer with the same codes."""
    # Here, since other benchmarks take constants from this file where the peer is not installed.
    from vector_quantize_pytorch import ResidualVQ  # noqa: PLC0415

    peer = ResidualVQ(dim=WIDTH, num_quantizers=DEPTH, codebook_size=CODES, shared_codebook=True)
    state = peer.state_dict()
    for name in state:
        if name.endswith(".embed"):
            state[name] = quantizer.codes[None]
    peer.load_state_dict(state)
    return peer


def _products_in_tiles(vectors: Tensor, codes: Tensor) -> None:
    """Multiply some rows at a time, so that products stay in the cache, and keep none of them."""
    tile = torch.empty(TILE, CODES)
    for _ in range(DEPTH):
        for rows in vectors.split(TILE):
            torch.mm(rows, codes.T, out=tile[: len(rows)])


@torch.no_grad()
def full_distances(vectors: Tensor, codes: Tensor, *, move: bool) -> Tensor:
    """Quantise as the released code does, and return ids, (M, D).

    It computes all distances, then one-hot products for codes and, in training, their sums.
    """
    ids: list[Tensor] = []
    sums = torch.zeros_like(codes)
    for _ in range(DEPTH):
        distances = vectors.square().sum(1, keepdim=True) - 2 * vectors @ codes.T + codes.square().sum(1)
        nearest = distances.argmin(1)
        ids.append(nearest)
        one_hot = F.one_hot(nearest, len(codes)).to(vectors.dtype)
        if move:
            sums += one_hot.T @ vectors
        vectors = vectors - one_hot @ codes
    return torch.stack(ids, 1)


@torch.no_grad()
def agreement(vectors: Tensor, codes: Tensor, ids: Tensor) -> float:
    """Return the share of ids, (M, D), that differences in float64 give."""
    num_same = 0
    for depth_ids in ids.unbind(dim=1):
        for vector, found in zip(vectors, depth_ids, strict=True):
            distances = (codes.double() - vector.double()).square().sum(1)
            num_same += int(distances.argmin() == found)
        vectors = vectors - codes[depth_ids]
    return num_same / ids.numel()


if __name__ == "__main__":
    main()
