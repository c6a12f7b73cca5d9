"""What each metric of an evaluation is: which values are better, in which unit, and what it needs.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dualtoken.pipelines.config.evaluation import UNIFIED_METRICS, EvaluationProtocol, MetricName
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction

VERSION = 1
"""Raised when a metric gives other numbers for the same images; part of every protocol's hash."""
TEACHER = "_teacher"
"""Suffix of a metric that is taken on the teacher's own embeddings."""
SHUFFLED = "_shuffled"
"""Suffix of a metric of a unified model that is taken against the next sample of the set."""
SCENE_SIZE = 64
"""Pixels a side of the generator's scenes, in which the oracle reads objects."""
MS_SSIM_SIZE = 176
"""Least side that MS-SSIM's five scales need, pixels."""
SHARE = "share"
"""Unit of values from 0 to 1."""
_SHARE_MARGIN = 0.003
"""Least difference of a share that matters: 0.3 points."""
_UNIFIED_MARGIN = 0.01
"""The same of answers, descriptions and drawings: a point."""


class Metric(NamedTuple):
    """One metric's description."""

    title: str
    direction: Direction = "higher"
    unit: str = SHARE
    margin: float = _SHARE_MARGIN
    """Least difference that matters in practice, until it is measured."""
    is_per_sample: bool = True
    """Whether the value is the mean of a column of the score table."""
    needs: str = ""
    """What a set must have, such as `captions`, `labels` or `scenes`; empty: nothing but images."""
    needs_teacher: bool = False
    needs_every_sample: bool = False
    """Whether it is computed once all units are done, from what they have spooled."""


def _understood(title: str, needs: str, *, every_sample: bool = False) -> Metric:
    return Metric(title, needs=needs, needs_teacher=True, needs_every_sample=every_sample)


def _unified(title: str, needs: str) -> Metric:
    return Metric(title, needs=needs, margin=_UNIFIED_MARGIN)


CATALOGUE: dict[MetricName, Metric] = {
    "psnr": Metric("PSNR", unit="dB", margin=0.05),
    "ssim": Metric("SSIM", unit=""),
    "ms_ssim": Metric("MS-SSIM", unit=""),
    "lpips": Metric("LPIPS", "lower", unit=""),
    "dists": Metric("DISTS", "lower", unit=""),
    "text_kept": Metric("Text read in reconstructions, of that read in the images"),
    "objects_read": Metric("Objects read in reconstructions", needs="scenes"),
    "objects_read_original": Metric("Objects read in the images themselves", needs="scenes"),
    "idempotence_semantic": Metric("Semantic codes kept by the reconstruction"),
    "idempotence_pixel": Metric("Pixel codes kept by the reconstruction"),
    "jpeg_agreement_semantic": Metric("Semantic codes kept by JPEG"),
    "jpeg_agreement_pixel": Metric("Pixel codes kept by JPEG"),
    "batch_agreement_semantic": Metric("Semantic codes equal alone and in a batch"),
    "batch_agreement_pixel": Metric("Pixel codes equal alone and in a batch"),
    "usage_semantic": Metric("Semantic codes in use", is_per_sample=False),
    "usage_pixel": Metric("Pixel codes in use", is_per_sample=False),
    "perplexity_semantic": Metric("Semantic perplexity", unit="", margin=1.0, is_per_sample=False),
    "perplexity_pixel": Metric("Pixel perplexity", unit="", margin=1.0, is_per_sample=False),
    "bits_per_pixel": Metric("Bits per pixel", "lower", unit="bit", margin=0.01, is_per_sample=False),
    "attribute_shape": _understood("Shapes told by codes", "scenes"),
    "attribute_colour": _understood("Colours told by codes", "scenes"),
    "attribute_size": _understood("Sizes told by codes", "scenes"),
    "attribute_shape_teacher": _understood("Shapes told by the teacher", "scenes"),
    "attribute_colour_teacher": _understood("Colours told by the teacher", "scenes"),
    "attribute_size_teacher": _understood("Sizes told by the teacher", "scenes"),
    "zero_shot": _understood("Zero-shot classes, by codes", "labels"),
    "zero_shot_teacher": _understood("Zero-shot classes, by the teacher", "labels"),
    "image_to_text": _understood("Own caption found, by codes", "captions", every_sample=True),
    "image_to_text_teacher": _understood("Own caption found, by the teacher", "captions", every_sample=True),
    "text_to_image": _understood("Own image found, by codes", "captions", every_sample=True),
    "text_to_image_teacher": _understood("Own image found, by the teacher", "captions", every_sample=True),
    "knn": _understood("Class of the nearest images, by codes", "labels", every_sample=True),
    "knn_teacher": _understood("Class of the nearest images, by the teacher", "labels", every_sample=True),
    "linear_probe": _understood("Linear probe, by codes", "labels", every_sample=True),
    "linear_probe_teacher": _understood("Linear probe, by the teacher", "labels", every_sample=True),
    "fd_teacher": Metric(
        "Frechet distance in the teacher's embeddings",
        "lower",
        unit="",
        margin=0.002,
        needs_teacher=True,
        needs_every_sample=True,
    ),
    "fd": Metric(
        "Frechet distance in a network's features", "lower", unit="", margin=0.05, needs_every_sample=True
    ),
    "answer": _unified("Questions answered", "questions"),
    "answer_shape": _unified("Questions for shapes answered", "shape questions"),
    "answer_colour": _unified("Questions for colours answered", "colour questions"),
    "answer_size": _unified("Questions for sizes answered", "size questions"),
    "answer_place": _unified("Questions for places answered", "place questions"),
    "answer_count": _unified("Questions for counts answered", "count questions"),
    "answer_dots": _unified("Questions for dots answered", "dots questions"),
    "answer_shuffled": _unified("Questions answered, of another image", "questions"),
    "answer_shape_shuffled": _unified("Questions for shapes answered, of another image", "shape questions"),
    "answer_colour_shuffled": _unified(
        "Questions for colours answered, of another image", "colour questions"
    ),
    "answer_size_shuffled": _unified("Questions for sizes answered, of another image", "size questions"),
    "answer_place_shuffled": _unified("Questions for places answered, of another image", "place questions"),
    "answer_count_shuffled": _unified("Questions for counts answered, of another image", "count questions"),
    "answer_dots_shuffled": _unified("Questions for dots answered, of another image", "dots questions"),
    "described_grammar": _unified("Descriptions that the grammar reads", "scenes"),
    "described_shape": _unified("Shapes described at their place", "scenes"),
    "described_colour": _unified("Colours described at their place", "scenes"),
    "described_size": _unified("Sizes described at their place", "scenes"),
    "described_place": _unified("Places described", "scenes"),
    "described_whole": _unified("Scenes described without a mistake", "scenes"),
    "described_shape_shuffled": _unified("Shapes described at their place, of another image", "scenes"),
    "described_colour_shuffled": _unified("Colours described at their place, of another image", "scenes"),
    "described_size_shuffled": _unified("Sizes described at their place, of another image", "scenes"),
    "described_place_shuffled": _unified("Places described, of another image", "scenes"),
    "described_whole_shuffled": _unified("Scenes described without a mistake, of another image", "scenes"),
    "drawn_object": _unified("Objects drawn, anywhere", "scenes"),
    "drawn_binding": _unified("Objects drawn with their own colour and size, anywhere", "scenes"),
    "drawn_shape": _unified("Shapes drawn at their place", "scenes"),
    "drawn_colour": _unified("Colours drawn at their place", "scenes"),
    "drawn_size": _unified("Sizes drawn at their place", "scenes"),
    "drawn_place": _unified("Places drawn", "scenes"),
    "drawn_whole": _unified("Captions drawn without a mistake", "scenes"),
    "drawn_object_shuffled": _unified("Objects drawn, anywhere, of another caption", "scenes"),
    "drawn_binding_shuffled": _unified(
        "Objects drawn with their own colour and size, anywhere, of another caption", "scenes"
    ),
    "drawn_shape_shuffled": _unified("Shapes drawn at their place, of another caption", "scenes"),
    "drawn_colour_shuffled": _unified("Colours drawn at their place, of another caption", "scenes"),
    "drawn_size_shuffled": _unified("Sizes drawn at their place, of another caption", "scenes"),
    "drawn_place_shuffled": _unified("Places drawn, of another caption", "scenes"),
    "drawn_whole_shuffled": _unified("Captions drawn without a mistake, of another caption", "scenes"),
}


def margin(protocol: EvaluationProtocol, name: MetricName) -> float:
    """Return the least difference of a metric that matters under a protocol."""
    return protocol.margins.get(name, CATALOGUE[name].margin)


def needs_teacher(protocol: EvaluationProtocol) -> bool:
    """Tell whether a protocol has a metric for which the teacher is run."""
    return any(CATALOGUE[name].needs_teacher for name in protocol.metrics)


def needs_unified(protocol: EvaluationProtocol) -> bool:
    """Tell whether a protocol has a metric that only unified models have."""
    return any(name in UNIFIED_METRICS for name in protocol.metrics)


def require_set_has(
    protocol: EvaluationProtocol, protocol_name: str, set_name: str, has: Sequence[str]
) -> None:
    """Raise `UserError` where a set lacks what one of a protocol's metrics needs."""
    for name, needed in _needs(protocol):
        if needed not in has:
            known = ", ".join(has) or "images alone"
            raise UserError(
                f"protocols.{protocol_name}.metrics: {name} needs {needed}, and the set {set_name} has "
                f"{known}: {_how_to_have(needed)}, or leave the metric out"
            )


def _how_to_have(needed: str) -> str:
    if needed.endswith("questions"):
        return "set questions=true of scenes, or questions_column of others"
    return "give the set's columns"


def require_others(protocol: EvaluationProtocol, set_name: str, num_samples: int) -> None:
    """Raise `UserError` where a set has no other sample to shuffle one with."""
    for name in protocol.metrics:
        if name.endswith(SHUFFLED) and num_samples < 2:
            raise UserError(
                f"sets.{set_name} has one image, and {name} needs two: give more, or leave it out"
            )


def _needs(protocol: EvaluationProtocol) -> Iterator[tuple[MetricName, str]]:
    for name in protocol.metrics:
        if CATALOGUE[name].needs:
            yield name, CATALOGUE[name].needs


def require_size(protocol: EvaluationProtocol, protocol_name: str, image_size: int) -> None:
    """Raise `UserError` where a metric cannot be taken on images of a tokenizer's size."""
    for name in protocol.metrics:
        if name.startswith(("objects_read", "drawn_")) and image_size != SCENE_SIZE:
            needed = f"scenes of {SCENE_SIZE} pixels a side"
        elif name == "ms_ssim" and image_size < MS_SSIM_SIZE:
            needed = f"images of {MS_SSIM_SIZE} pixels a side"
        else:
            continue
        raise UserError(
            f"protocols.{protocol_name}.metrics: {name} needs {needed}, the tokenizer's are of {image_size}: "
            "leave the metric out"
        )
