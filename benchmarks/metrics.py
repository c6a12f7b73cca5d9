"""Metrics of an evaluation beside their peers on the same inputs, and as a share of decoding.

torchmetrics has PSNR, SSIM and MS-SSIM; torch-fidelity the Fréchet distance; open_clip the building of
zero-shot classes. Peers that are not installed are named and left out (for torch-fidelity,
`pip install --no-deps torch-fidelity==0.4.0` suffices). Calls take turns, so that other load hits all alike.
On one thread (OMP_NUM_THREADS=1) times are of the process's own work, medians in either case.
Run: python -m benchmarks.metrics [RECIPE...]
"""

import argparse
import importlib
import statistics
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import hardware, seconds_in_turn, today
from dualtoken.model.metrics.classification import (
    class_embeddings,
    is_in_top,
    zero_shot_prompts,
    zero_shot_scores,
)
from dualtoken.model.metrics.frechet import frechet_distance, influences_by, moments, transport
from dualtoken.model.metrics.reconstruction import psnr_from, squared_errors
from dualtoken.model.metrics.structural_similarity import (
    MIN_MULTI_SCALE_SIDE,
    ms_ssim,
    structural_similarity,
)
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.parse import load_recipe

SIDE = 256
"""Pixels of the compared images."""
IMAGES = 8
SAMPLES = 4096
"""Samples of each set of features."""
CHANNELS = 768
"""Channels of the features: ViT-B's."""
CLASSES = 200
CPU = torch.device("cpu")


class Pair(NamedTuple):
    """A metric and its peer on the same inputs."""

    name: str
    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor] | None
    """None where it is not installed."""
    difference: Callable[[Tensor, Tensor], str]
    """Text of the largest difference, in what both give."""


def module(name: str) -> ModuleType | None:
    """Import a peer; None where it is not installed."""
    try:
        with vision_imports():
            return importlib.import_module(name)
    except ModuleNotFoundError:
        print(f"{name.partition('.')[0]} is not installed: left out")
        return None


def largest(found: Tensor, expected: Tensor) -> str:
    """Return the largest absolute difference."""
    return f"{(found - expected).abs().max().item():.1e}"


def relative(found: Tensor, expected: Tensor) -> str:
    """Return the largest relative difference."""
    return f"{((found - expected) / expected).abs().max().item():.1e} of it"


def share_of_unlike(found: Tensor, expected: Tensor) -> str:
    """Return how many truth values differ."""
    return f"{int((found != expected).sum())} of {len(found)}"


def pictures(num_images: int, side: int) -> tuple[Tensor, Tensor]:
    """Return smooth images and the same with noise, as uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, side // 8, side // 8, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 255
    noisy = (smooth + 6 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255)
    return noisy.to(torch.uint8), smooth.to(torch.uint8)


def reconstruction_pairs() -> Iterator[Pair]:
    """Yield PSNR, SSIM and MS-SSIM."""
    peers = module("torchmetrics.functional.image")
    images, references = pictures(IMAGES, SIDE)
    in_range = {"data_range": 1.0, "reduction": "none"}

    def peer(name: str, dtype: torch.dtype, **settings: object) -> Callable[[], Tensor] | None:
        if peers is None:
            return None
        metric = getattr(peers, name)
        return lambda: metric(images.to(dtype) / 255, references.to(dtype) / 255, **in_range, **settings)

    def psnr() -> Tensor:
        return psnr_from(squared_errors(images, references), images[0].numel())

    yield Pair(
        "PSNR",
        psnr,
        peer("peak_signal_noise_ratio", torch.float64, dim=(1, 2, 3)),
        largest,
    )
    for dtype in (torch.float64, torch.float32):
        digits = str(dtype).removeprefix("torch.")
        name = "structural_similarity_index_measure"
        yield Pair(
            f"SSIM, peer in {digits}",
            lambda: structural_similarity(images, references),
            peer(name, dtype),
            largest,
        )
        yield Pair(
            f"MS-SSIM, peer in {digits}",
            lambda: ms_ssim(images, references),
            peer(f"multiscale_{name}", dtype),
            largest,
        )


def frechet_pairs() -> Iterator[Pair]:
    """Yield the Fréchet distance, and what its error takes besides, which no peer gives."""
    fidelity = module("torch_fidelity.metric_fid")
    generator = torch.Generator().manual_seed(0)
    # Variances that fall as those of networks' features do.
    scale = torch.logspace(0, -2, CHANNELS, dtype=torch.float64)
    references = torch.randn(SAMPLES, CHANNELS, generator=generator, dtype=torch.float64) * scale
    noise = torch.randn(SAMPLES, CHANNELS, generator=generator, dtype=torch.float64) * scale
    features = 0.9 * references + 0.3 * noise + 0.01
    centre = references[:64].mean(dim=0)

    def ours() -> Tensor:
        distance = frechet_distance(moments(features, centre), moments(references, centre))
        return torch.tensor(distance, dtype=torch.float64)

    def peer() -> Tensor:
        assert fidelity is not None
        statistics_of_sets = [fidelity.fid_features_to_statistics(rows) for rows in (features, references)]
        result = fidelity.fid_statistics_to_metric(*statistics_of_sets, verbose=False)
        return torch.tensor(result["frechet_inception_distance"], dtype=torch.float64)

    yield Pair("Fréchet distance", ours, peer if fidelity else None, relative)
    maps = transport(moments(features, centre), moments(references, centre))
    yield Pair("its influences", lambda: influences_by(maps, features, references, centre), None, largest)


def zero_shot_pairs() -> Iterator[Pair]:
    """Yield top-1 of zero-shot classes, the embedding of their prompts included."""
    open_clip = module("open_clip")
    if open_clip is None:
        return
    torch.manual_seed(0)
    text = {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = open_clip.CLIP(embed_dim=128, vision_cfg=vision, text_cfg=text).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    names = open_clip.IMAGENET_CLASSNAMES[:CLASSES]
    templates = ["a photo of a {}.", "a drawing of a {}.", "a photo of the large {}.", "{}"]
    images = F.normalize(torch.randn(SAMPLES, 128), dim=-1)
    labels = torch.randint(0, CLASSES, (SAMPLES,))

    @torch.no_grad()
    def ours() -> Tensor:
        prompts = zero_shot_prompts(names, templates)
        found = [model.encode_text(tokenizer(prompts[at : at + 40])) for at in range(0, len(prompts), 40)]
        classes = class_embeddings(torch.cat(found).unflatten(0, (CLASSES, len(templates))))
        return is_in_top(zero_shot_scores(images, classes), labels, 1)

    def peer() -> Tensor:
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
        return (images @ weights).argmax(dim=1) == labels

    yield Pair("zero-shot top-1", ours, peer, share_of_unlike)


def measure(pair: Pair, rounds: int) -> str:
    """Time a metric and its peer in turn, and return a line of the table."""
    runs: dict[str, Callable[[], object]] = {"ours": pair.ours}
    difference = ""
    if pair.peer is not None:
        runs["peer"] = pair.peer
        difference = pair.difference(pair.ours(), pair.peer())
    times = seconds_in_turn(runs, CPU, rounds)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    line = f"{pair.name:26}{medians['ours'] * 1e3:12.1f}"
    if pair.peer is None:
        return line
    return f"{line}{medians['peer'] * 1e3:12.1f}{medians['peer'] / medians['ours']:8.2f}{difference:>20}"


def shares_of_decoding(name: str, num_images: int, rounds: int) -> str:
    """Return what metrics without weights take, in percent of the time in which a recipe's model decodes."""
    config = load_recipe(name).tokenizer
    tokenizer = DualTokenizer(config).eval()
    images, references = pictures(num_images, config.image_size)
    shape = (num_images, config.grid_size, config.grid_size, config.pixel.depth)
    codes = torch.randint(config.pixel.num_codes, shape)
    runs: dict[str, Callable[[], object]] = {
        "decode": lambda: tokenizer.decode(codes),
        "PSNR": lambda: squared_errors(images, references),
        "SSIM": lambda: structural_similarity(images, references),
    }
    if config.image_size >= MIN_MULTI_SCALE_SIDE:
        runs["MS-SSIM"] = lambda: ms_ssim(images, references)
    times = seconds_in_turn(runs, CPU, rounds)
    medians = {metric: statistics.median(taken) for metric, taken in times.items()}
    decode = medians.pop("decode")
    shares = ", ".join(f"{metric} {taken / decode:.2%}" for metric, taken in medians.items())
    share = sum(medians.values()) / decode
    milliseconds = decode / num_images * 1e3
    return f"{name}, {config.image_size} px, {milliseconds:.1f} ms an image: {shares}; {share:.1%} in all"


def main() -> None:
    """Print the table, and the shares of decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["scenes", "urls"])
    parser.add_argument("--images", type=int, default=IMAGES, help="images that are decoded at a time")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{today()}, {hardware(CPU)}; {IMAGES} images of {SIDE} px; ", end="")
    print(f"{SAMPLES} samples of {CHANNELS} channels; {CLASSES} classes; medians of {arguments.rounds}")
    print(f"{'':26}{'ours, ms':>12}{'peer, ms':>12}{'ratio':>8}{'largest difference':>20}")
    for pairs in (reconstruction_pairs, frechet_pairs, zero_shot_pairs):
        for pair in pairs():
            print(measure(pair, arguments.rounds), flush=True)
    print("share of decoding, by time:")
    for name in arguments.recipes:
        print(shares_of_decoding(name, arguments.images, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
