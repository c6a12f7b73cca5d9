"""Faults planted in the evaluator, the protocol and the model: each is told for what it is, by name.

A night is measured for real before the fault and once with it, by the canary and a folder's model. Faults of
the evaluator move the canary's bits; other protocols are incomparable; a worse model loses to itself, paired.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dualtoken.infra.storage import Store
from dualtoken.model.vision.transform import Transform
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.errors import UnitsFailed
from dualtoken.pipelines.evaluation import closeness, evaluate, set_rows
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.comparison import compare
from dualtoken.pipelines.evaluation.evaluations import read_evaluation
from dualtoken.pipelines.evaluation.understanding import Understanding
from dualtoken.pipelines.inference.networks import TokenizerRunner
from tests.helpers.evaluated import canary, config_of, evaluated
from tests.helpers.fault_nights import FIRST, SECOND, FaultNights, changed

SETS = {"s": {"kind": "scenes", "num_images": 24}}
METRICS = ["psnr", "ssim", "objects_read_original", "attribute_colour", "image_to_text", "fd_teacher"]
PROTOCOLS = {"p": {"metrics": METRICS[:5], "batch_size": 8}}


@pytest.fixture
def nights(tmp_path: Path) -> FaultNights:
    model, teacher = write_canary(tmp_path / "model")
    record = StageRecord(
        stage="train",
        corpus=None,
        fingerprint="0" * 12,
        identity={},
        inputs={"teacher": str(teacher)},
        recipe={},
    )
    (model / STAGE_FILE).write_bytes(record.to_bytes())
    nights = FaultNights(tmp_path, model, "s/p/psnr")
    nights.write(SETS, PROTOCOLS)
    assert nights.run(FIRST).state == "ok"
    return nights


def _shifted(levels: Callable[..., Any]) -> Callable[..., Any]:
    return lambda runner, pictures: torch.roll(levels(runner, pictures), 1, dims=-1)


def _truncated(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda transform, images: transform.to_levels(images).floor().clamp(0, 255).to(torch.uint8)


def _bgr(decode: Callable[..., Any]) -> Callable[..., Any]:
    return lambda data: Image.merge("RGB", decode(data).split()[::-1])


def _through_jpeg(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decoded(data: bytes) -> Image.Image:
        stream = io.BytesIO()
        decode(data).save(stream, "JPEG", quality=75)
        return Image.open(stream).convert("RGB")

    return decoded


def _without_the_second_batch(batched: Callable[..., Any]) -> Callable[..., Any]:
    def some(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
        for number, part in enumerate(batched(items, size)):
            if number != 1:
                yield part

    return some


def _the_first_batch_twice(batched: Callable[..., Any]) -> Callable[..., Any]:
    def some(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
        parts = list(batched(items, size))
        yield from [parts[0], parts[0], *parts[2:]]

    return some


def _in_half_precision(psnr_from: Callable[..., Any]) -> Callable[..., Any]:
    return lambda errors, num_values: psnr_from(errors, num_values).half().double()


def _of_others(texts: Callable[..., Any]) -> Callable[..., Any]:
    return lambda understanding, captions: texts(understanding, [*captions[1:], *captions[:1]])


EVALUATOR_FAULTS = {
    "crop off by one": (changed(TokenizerRunner, "levels", _shifted), "s/p/psnr"),
    "truncation for rounding": (changed(Transform, "to_uint8", _truncated), "s/p/psnr"),
    "blue for red": (changed(evaluate, "decode_rgb", _bgr), "s/p/psnr"),
    "JPEG": (changed(evaluate, "decode_rgb", _through_jpeg), "s/p/psnr"),
    "float16 values": (changed(closeness, "psnr_from", _in_half_precision), "s/p/psnr"),
    "captions of others": (changed(Understanding, "texts", _of_others), "s/p/image_to_text"),
}


@pytest.mark.parametrize("fault", EVALUATOR_FAULTS)
def test_a_fault_of_the_evaluator_is_told_and_not_laid_on_the_model(
    fault: str, nights: FaultNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, series = EVALUATOR_FAULTS[fault]
    patch(monkeypatch)
    state = nights.run(SECOND)
    assert state.state == "evaluator-changed", state.reason
    assert "the canary scores otherwise than on 2026-11-01" in state.reason
    assert series in state.reason


@pytest.mark.parametrize(("fault", "count"), [(_without_the_second_batch, 0), (_the_first_batch_twice, 2)])
def test_a_batch_that_is_dropped_or_taken_twice_fails_the_night(
    fault: Callable[..., Any], count: int, nights: FaultNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(evaluate, "batched", fault)(monkeypatch)
    with pytest.raises(UnitsFailed, match=f"was scored {count} times: the evaluator is at fault"):
        nights.run(SECOND)
    state = nights.state(SECOND)
    assert state.state == "failed"
    assert f"was scored {count} times" in state.reason


def test_shuffled_captions_of_a_set_are_another_set(
    nights: FaultNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_rows, "caption", lambda _: "a caption of another picture")
    state = nights.run(SECOND)
    assert (state.state, state.reason) == ("incomparable", "the set s changed (since 2026-11-01)")


def test_other_templates_are_named(nights: FaultNights) -> None:
    nights.write(SETS, {"p": PROTOCOLS["p"] | {"templates": ["a drawing of {}."]}})
    state = nights.run(SECOND)
    assert state.state == "incomparable"
    assert "the protocol p changed" in state.reason
    assert "templates" in state.reason


def test_another_reference_is_named(nights: FaultNights) -> None:
    weights = nights.folder / "model/teacher/open_clip_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("attn_pool.q.weight") or "proj" in name)
    tensors[name] = tensors[name] * 1.1
    save_file(tensors, weights)
    state = nights.run(SECOND)
    assert state.state == "incomparable"
    assert "teacher" in state.reason


def _dead_book(tensors: dict[str, torch.Tensor]) -> None:
    """Let every pixel code be the first one, as a collapsed codebook does."""
    codes = tensors["quantize_pixel.codes"]
    tensors["quantize_pixel.codes"] = codes[:1].expand_as(codes).clone()


def _other_weights(tensors: dict[str, torch.Tensor]) -> None:
    generator = torch.manual_seed(0)
    for name, value in tensors.items():
        if name.startswith("decoder") and value.ndim > 1:
            tensors[name] = value + 0.5 * value.std() * torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("fault", [_dead_book, _other_weights])
def test_a_worse_model_loses_to_what_it_was(
    fault: Callable[[dict[str, torch.Tensor]], None], tmp_path: Path
) -> None:
    place = canary(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    weights = tmp_path / "after/tokenizer/model.safetensors"
    (weights.parent / "README.md").unlink()  # else the exchange is refused by the fingerprint in it
    tensors = load_file(weights)
    fault(tensors)
    save_file(tensors, weights, {"format": "pt"})
    after = place._replace(folder=Store(str(weights.parent)))
    config = config_of(tmp_path / "root", SETS, {"p": {"metrics": ["psnr", "usage_pixel"], "batch_size": 8}})
    first = read_evaluation(evaluated(config, place).folder.url)
    second = read_evaluation(evaluated(config, after).folder.url)
    comparison = compare(first.summary, first.scores, second.summary, second.scores)
    found = {one.series: (one.verdict, one.difference) for one in comparison.series}
    assert first.summary.subject.digest != second.summary.subject.digest
    if fault is _dead_book:
        assert found["s/p/usage_pixel"][1] < -0.5
    else:
        assert found["s/p/psnr"][0] == "worse", found
    assert np.isfinite([difference for _, difference in found.values()]).all()
