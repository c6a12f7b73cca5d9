"""Costs of the unified model are those that torch counts in a step, whatever is frozen or adapted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualtoken.model.config.mllm import MllmTrainingConfig, NamedTrunk, TrunkShape
from dualtoken.model.config.mllm_costs import (
    MllmShape,
    StepSize,
    drawn_position,
    image_codes,
    mllm_step,
)
from dualtoken.model.config.optimizer import ParameterGroup
from dualtoken.model.config.trunk_dimensions import NAMED_TRUNKS, stated_dimensions, trunk_dimensions
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.lora import add_adapters
from dualtoken.model.mllm.losses import MllmBatch, PackedLosses, TargetCounts, step_size
from dualtoken.model.mllm.text_tokenizer import load_text_tokenizer
from dualtoken.model.mllm.trainer import MllmTrainer
from dualtoken.pipelines.config.parse import load_recipe
from tests.helpers.tiny_mllm import (
    DESCRIBE,
    DRAW,
    VISION_SHA256,
    WORDS,
    documents,
    packed,
    tiny_config,
    tiny_model,
    tiny_vision,
)
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config
from tests.helpers.tiny_trunk import tiny_trunk
from tests.model.test_costs import counted

IMAGES = image_codes(tiny_tokenizer_config())
TRUNK = TrunkShape(width=16, depth=2, num_heads=2, mlp_width=32)


def model_of(config: MllmTrainingConfig) -> DualTokenForConditionalGeneration:
    if isinstance(config.trunk, NamedTrunk):
        text = load_text_tokenizer(config.trunk.model)
        model = build_mllm(config, tiny_vision(), VISION_SHA256, text, seed=2)
    else:
        model = tiny_model(config)
    if config.lora is not None:
        add_adapters(model, config.lora, seed=7)
    return model


def shape_of(config: MllmTrainingConfig, model: DualTokenForConditionalGeneration) -> MllmShape:
    return MllmShape(config, stated_dimensions(model.config.text_config.to_dict()), IMAGES)


def batch_of(model: DualTokenForConditionalGeneration, share: float = 1.0) -> MllmBatch:
    """Return two rows of documents, of whose image targets a share is trained at all depths."""
    rows = [documents(model, DRAW, DESCRIBE, WORDS), documents(model, DRAW, WORDS)]
    batch = packed(model, rows)
    all_depths = batch.all_depths.clone()
    all_depths[int(share * len(all_depths)) :] = False
    return batch._replace(all_depths=all_depths & batch.visual_targets)


def as_torch_computes(batch: MllmBatch) -> StepSize:
    """Return a batch's size on a CPU, where documents are padded to the longest for attention."""
    padded = len(batch.segments.lengths()) * batch.segments.longest**2
    return step_size(batch)._replace(attended=padded)


CASES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "learned positions": {"visual_position": "learned"},
    "shared mlp": {"head": {"width": 8, "num_layers": 1, "num_heads": 1, "mlp": "shared", "mlp_width": 24}},
    "one stream": {"inputs": ["pixel"], "targets": ["pixel", "semantic"]},
    "answers alone": {"targets": []},
    "phase 1": {"phase": 1},
    "phase 2": {"phase": 2},
    "phase 3": {"phase": 3},
    "frozen trunk": {"parameters": [{"pattern": "model.language_model.*", "freeze": True}]},
    "frozen beginning": {
        "phase": 2,
        "parameters": [
            {"pattern": "model.visual_projector.*", "freeze": True},
            {"pattern": "model.language_model.embed_tokens.*", "freeze": True},
            {"pattern": "model.language_model.layers.0.*", "freeze": True},
        ],
    },
    "frozen classifiers": {"parameters": [{"pattern": "heads.pixel.classifiers.*", "freeze": True}]},
}


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_counted_to_the_operation(name: str, share: float) -> None:
    check_step(tiny_config(**{"trunk": TRUNK, "visual_position": "none", **CASES[name]}), share)


def check_step(config: MllmTrainingConfig, share: float = 1.0) -> None:
    """Compare the count of a step and of the parameters with those of a model that takes the step."""
    model = model_of(config)
    shape = shape_of(config, model)
    trainer = MllmTrainer(model, config)
    batch = batch_of(model, share)
    found = counted(lambda: trainer.train_step([batch]))
    parts = mllm_step(shape, as_torch_computes(batch))
    assert sum(part.flop for part in parts) == found
    parameters = list(model.parameters())
    assert sum(part.num_weights for part in parts) == sum(one.numel() for one in parameters)
    trained = [one for one in parameters if one.requires_grad]
    assert sum(part.num_trained for part in parts) == sum(one.numel() for one in trained)
    table = model.get_input_embeddings().weight
    matrices = [tuple(one.shape) for one in trained if one.ndim == 2 and one is not table]
    if shape.config.visual_position == "learned":
        matrices = [found for found in matrices if found != (IMAGES.side, TRUNK.width)]
    assert sorted(pair for part in parts for pair in part.matrices) == sorted(matrices)


@pytest.mark.parametrize("phase", [2, 4])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_counted_to_the_operation(phase: int, targets: object) -> None:
    pytest.importorskip("peft", reason="peft is missing: pip install 'dualtoken[lora]'")
    lora = {"rank": 2, "target_modules": targets}
    check_step(tiny_config(trunk=TRUNK, visual_position="none", lora=lora, phase=phase))


def test_a_named_trunk_is_counted_by_what_its_folder_states(tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "llama")
    trunk = NamedTrunk(kind="pretrained", model=str(folder))
    config = tiny_config(trunk=trunk, visual_position="none")
    model = model_of(config)
    assert trunk_dimensions(trunk) == shape_of(config, model).trunk
    # A pass without gradients: with fewer heads of keys than of queries, a CPU takes the backward pass of
    # attention in four products, and fused attention takes it in five.
    batch = batch_of(model)
    size = step_size(batch)
    losses = PackedLosses(model, config.losses)
    with torch.no_grad():
        found = counted(lambda: losses(batch, TargetCounts(size.text_targets, size.visual_targets)))
    frozen = config.model_copy(update={"parameters": (ParameterGroup(pattern="*", freeze=True),)})
    parts = mllm_step(shape_of(frozen, model), as_torch_computes(batch))
    assert sum(part.flop for part in parts) == found


def test_attention_is_counted_within_documents_and_padding_is_a_document() -> None:
    model = model_of(tiny_config())
    batch = batch_of(model)
    lengths = batch.segments.lengths().tolist()
    size = step_size(batch)
    assert len(set(lengths)) > 1
    assert size.attended == sum(length**2 for length in lengths)
    assert size.positions == batch.input_ids.numel() == sum(lengths)
    assert size.visual == 3 * IMAGES.positions
    assert size.visual_targets == size.all_depths == 2 * IMAGES.positions
    assert size.text_targets == 3 + 2 * 2
    assert size.plus(size) == StepSize(*(2 * number for number in size))


@pytest.mark.parametrize(
    ("name", "billions", "image_size", "head_width", "gigabytes", "gigaflop"),
    [
        # The counts of the project's survey, by hand: weights without embeddings, and of both heads.
        ("Qwen/Qwen2.5-3B", 2.77, 256, 2048, 2.15, 2.15),
        ("Qwen/Qwen2.5-3B-Instruct", 2.77, 384, 2048, 4.29, 4.29),
        ("Qwen/Qwen2.5-3B", 2.77, 256, 1024, 0.67, 0.67),
        ("Qwen/Qwen2.5-7B", 6.53, 384, 1024, 1.34, 1.34),
    ],
)
def test_a_drawn_position_reads_the_trunk_once_and_the_heads_once_a_depth(
    name: str, billions: float, image_size: int, head_width: int, gigabytes: float, gigaflop: float
) -> None:
    images = image_codes(load_recipe(f"paper-{image_size}").tokenizer)
    config = MllmTrainingConfig.model_validate({"head": {"width": head_width}})
    trunk = trunk_dimensions(NamedTrunk(kind="pretrained", model=name))
    drawn = drawn_position(config, trunk, images)
    projector = trunk.width * (2 * 32 + trunk.width)
    assert (drawn.trunk_weights - projector) / 1e9 == pytest.approx(billions, abs=0.005)
    # Beside blocks and classifiers: what a state of the trunk and the codes so far go through.
    ends = 2 * (trunk.width * head_width + head_width**2 + (images.depth - 1) * 32 * head_width)
    assert 2 * (drawn.head_weights - ends) / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert (drawn.head_flop - 2 * ends) / 1e9 == pytest.approx(gigaflop, abs=0.005)
    assert drawn.trunk_flop == 2 * drawn.trunk_weights
    assert drawn.cached == 2 * trunk.depth * trunk.num_key_value_heads * trunk.head_width


@pytest.mark.parametrize("name", NAMED_TRUNKS)
def test_a_known_trunk_has_as_many_parameters_as_its_name_says(name: str) -> None:
    trunk = trunk_dimensions(NamedTrunk(kind="pretrained", model=name))
    config = MllmTrainingConfig(targets=())
    parts = {part.name: part for part in mllm_step(MllmShape(config, trunk, IMAGES), StepSize(*[1] * 6))}
    parameters = parts["trunk"].num_weights + parts["text head"].num_weights
    # As the authors give them (arXiv 2412.15115 and the models' cards), in billions.
    billions = {"0.5B": 0.49, "1.5B": 1.54, "3B": 3.09, "7B": 7.61}[name.rpartition("-")[2]]
    assert parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_trunk_whose_layers_are_not_known_is_named(tmp_path: Path) -> None:
    nowhere = NamedTrunk(kind="pretrained", model="someone/something")
    with pytest.raises(ValueError, match=r"^trunk.model=someone/something has layers that are not known wit"):
        trunk_dimensions(nowhere)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    other = NamedTrunk(kind="pretrained", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"^a trunk of model_type=gpt2 has layers that are not counted$"):
        trunk_dimensions(other)


@pytest.mark.parametrize("phase", [1, 3, 4])
def test_what_waits_for_the_backward_pass_is_counted_within_a_sixth(phase: int) -> None:
    """A CPU pads documents for attention, and keeps the padding: it comes on top."""
    trunk = TrunkShape(width=64, depth=3, num_heads=2, mlp_width=256)
    config = tiny_config(trunk=trunk, phase=phase, head={"width": 32, "num_layers": 2, "num_heads": 1})
    model = model_of(config)
    trainer = MllmTrainer(model, config)
    batch = packed(model, [documents(model, DRAW, DESCRIBE, DRAW) for _ in range(4)])
    size = step_size(batch)
    weights = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = trainer._forward(batch, TargetCounts(size.text_targets, size.visual_targets))
    assert sums.total.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4
    parts = mllm_step(shape_of(config, model), size)
    expected = sum(part.products.saved + part.passes.saved + part.float32.saved for part in parts)
    assert expected < found < expected * 7 / 6
