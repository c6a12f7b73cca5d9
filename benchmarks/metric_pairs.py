"""What an evaluation computes beside its peers, on the same inputs: pairs that `benchmarks.metrics` times.

torchmetrics has PSNR, SSIM and MS-SSIM; torch-fidelity and clean-fid the Fréchet distance, and clean-fid the
resizing before it; open_clip the building of zero-shot classes.
"""

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from dualtoken.model.metrics.classification import (
    class_embeddings,
    is_in_top,
    zero_shot_prompts,
    zero_shot_scores,
)
from dualtoken.model.metrics.frechet import frechet_distance, influences_by, moments, transport
from dualtoken.model.metrics.reconstruction import psnr_from, squared_errors
from dualtoken.model.metrics.structural_similarity import ms_ssim, structural_similarity
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.evaluation import TimmFeatures
from dualtoken.pipelines.evaluation.feature_network import FeatureNetwork, resized

SIDE = 256
"""Pixels of the compared images."""
IMAGES = 8
SAMPLES = 4096
"""Samples of each set of features."""
CHANNELS = 768
"""Channels of the features: ViT-B's."""
CLASSES = 200
CPU = torch.device("cpu")
SEEN = 299
"""Pixels a side that Inception sees."""
NETWORK = "test_vit"
"""Architecture of timm's whose features the Fréchet distance after resizing is taken on, with weights of no
meaning: the weights of clean-fid's Inception are behind an address, not in its package."""
NETWORK_SIDE = 160
NETWORK_IMAGES = 96
"""More than its 64 channels."""
CLAMPS = {True: "clamped", False: "not"}
"""Whether images are clamped after they are resized, as clean-fid's are."""
FIDELITY = "torch-fidelity==0.4.0"
CLEAN_FID = "clean-fid==0.1.35"


class Pair(NamedTuple):
    """A metric and its peer on the same inputs."""

    name: str
    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor] | None
    """None where it is not installed."""
    difference: Callable[[Tensor, Tensor], str]
    """Text of the largest difference, in what both give."""


def module(name: str, package: str = "") -> ModuleType | None:
    """Import a peer; None where it is not installed, and a line that says how to."""
    try:
        with vision_imports():
            return importlib.import_module(name)
    except ModuleNotFoundError:
        top = name.partition(".")[0]
        print(f"{top} is not installed: left out (pip install --no-deps {package or top})")
        return None


def largest(found: Tensor, expected: Tensor) -> str:
    """Return the largest absolute difference."""
    return f"{(found - expected).abs().max().item():.1e}"


def largest_levels(found: Tensor, expected: Tensor) -> str:
    """Return the largest difference, in levels of 0 to 255."""
    return f"{(found - expected).abs().max().item():.1e} levels"


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
    fidelity = module("torch_fidelity.metric_fid", FIDELITY)
    clean_fid = module("cleanfid.fid", CLEAN_FID)
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

    def clean_peer() -> Tensor:
        return torch.tensor(clean_fid_distance(clean_fid, features, references), dtype=torch.float64)

    yield Pair("Fréchet distance", ours, peer if fidelity else None, relative)
    if clean_fid:
        yield Pair("the same, by clean-fid", ours, clean_peer, relative)
    maps = transport(moments(features, centre), moments(references, centre))
    yield Pair("its influences", lambda: influences_by(maps, features, references, centre), None, largest)


def clean_fid_distance(clean_fid: ModuleType | None, features: Tensor, references: Tensor) -> float:
    """Return the Fréchet distance as clean-fid takes it, by means and covariances of NumPy."""
    assert clean_fid is not None
    statistics: list[NDArray[np.float64]] = []
    for rows in (features, references):
        statistics += [rows.double().mean(dim=0).numpy(), np.cov(rows.double().numpy(), rowvar=False)]
    return float(clean_fid.frechet_distance(*statistics))


def clean_fid_pairs() -> Iterator[Pair]:
    """Yield clean-fid's resizing, Pillow's bicubic in float, and Fréchet distances of features after it."""
    resizing = module("cleanfid.resize", CLEAN_FID)
    clean_fid = module("cleanfid.fid", CLEAN_FID)
    if resizing is None or clean_fid is None:
        return
    for side in (64, SIDE, 384):
        images, _ = pictures(IMAGES, side)

        def peer(images: Tensor = images) -> Tensor:
            return clean_resized(resizing, images, SEEN)

        for clamp, name in CLAMPS.items():
            settings = TimmFeatures(kind="timm", model=NETWORK, image_size=SEEN, clamp=clamp, file="none")

            def ours(images: Tensor = images, settings: TimmFeatures = settings) -> Tensor:
                return 255 * resized(images, settings)

            yield Pair(f"{side} to {SEEN} px, {name}", ours, peer, largest_levels)
    yield from _clean_distances(resizing, clean_fid)


def clean_resized(resizing: ModuleType, images: Tensor, side: int) -> Tensor:
    """Return images as clean-fid resizes them, levels in float32."""
    resize = resizing.make_resizer("PIL", quantize_after=False, filter="bicubic", output_size=(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Pillow's `mode`
        seen = [torch.from_numpy(resize(image.permute(1, 2, 0).numpy())) for image in images]
    return torch.stack(seen).permute(0, 3, 1, 2)


def _clean_distances(resizing: ModuleType, clean_fid: ModuleType) -> Iterator[Pair]:
    """Yield the distance of images from their noisy copies, in features of one network."""
    with vision_imports():
        timm = importlib.import_module("timm")
    torch.manual_seed(0)
    network = timm.create_model(NETWORK, pretrained=False).eval()
    settings = TimmFeatures(kind="timm", model=NETWORK, image_size=NETWORK_SIDE, file="none")
    for side in (64, SIDE, 384):
        noisy, smooth = pictures(NETWORK_IMAGES, side)

        def peer(noisy: Tensor = noisy, smooth: Tensor = smooth) -> Tensor:
            found: list[Tensor] = []
            for images in (noisy, smooth):
                seen = clean_resized(resizing, images, NETWORK_SIDE)
                found.append(_features_of(network, seen, settings))
            return torch.tensor(clean_fid_distance(clean_fid, *found), dtype=torch.float64)

        for clamp, name in CLAMPS.items():
            features = _opened(network, settings.model_copy(update={"clamp": clamp}))

            def ours(
                noisy: Tensor = noisy, smooth: Tensor = smooth, features: FeatureNetwork = features
            ) -> Tensor:
                found = features(noisy)
                centre = torch.zeros(found.shape[1], dtype=torch.float64)
                distance = frechet_distance(moments(found, centre), moments(features(smooth), centre))
                return torch.tensor(distance, dtype=torch.float64)

            yield Pair(f"distance, {side} px, {name}", ours, peer, relative)


def _opened(network: nn.Module, settings: TimmFeatures) -> FeatureNetwork:
    """Return a network as evaluations open it, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        save_file(network.state_dict(), file)
        return FeatureNetwork(settings.model_copy(update={"file": str(file)}), CPU)


@torch.no_grad()
def _features_of(network: Any, levels: Tensor, settings: TimmFeatures) -> Tensor:  # noqa: ANN401
    """Return pooled features of images that are resized already, by timm's own calls."""
    mean = torch.tensor(settings.mean).view(3, 1, 1)
    std = torch.tensor(settings.std).view(3, 1, 1)
    tokens = network.forward_features((levels / 255 - mean) / std)
    return tokens[:, 1:].mean(dim=1)


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
