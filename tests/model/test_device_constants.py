"""Constants are brought to a device once, and serve training after inference."""

import pytest
import torch

from dualtoken.model import device_constants
from dualtoken.model.config.quantizer import ScalarQuantizerConfig
from dualtoken.model.device_constants import constant
from dualtoken.model.quantize import build_quantizer
from dualtoken.model.vision.transform import Transform

CPU = torch.device("cpu")


def test_a_constant_is_made_once_for_a_device_and_anew_for_shapes_alone() -> None:
    first = constant((0.25, 0.5), CPU)
    assert first.tolist() == [0.25, 0.5]
    assert constant((0.25, 0.5), CPU) is first
    meta = torch.device("meta")
    assert constant((0.25, 0.5), meta) is not constant((0.25, 0.5), meta)


def test_one_made_in_inference_is_good_for_training() -> None:
    with torch.inference_mode():
        made = constant((1.5, 2.5), CPU)
    weight = torch.ones(2, requires_grad=True)
    (weight * made).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.5, 2.5]


def test_batches_after_the_first_copy_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Transform(image_size=8, mean=(0.4, 0.5, 0.6))
    quantizer = build_quantizer(ScalarQuantizerConfig(kind="scalar", levels=(7, 5), depth=2))
    levels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    tokens = torch.randn(1, 3, 4)

    def run() -> None:
        transform.normalize(levels)
        quantizer(tokens)

    run()
    made: list[object] = []
    monkeypatch.setattr(torch, "tensor", lambda *values, **_: made.append(values))
    run()
    assert made == []
    assert device_constants._kept.cache_info().hits > 0
