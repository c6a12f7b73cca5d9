"""The unified model's step of `benchmarks.gpu`: its training and its drawing, beside what `plan` expects.

On a GPU it has the dimensions of Qwen2.5-3B with the paper's heads, and few of the blocks; two numbers of
blocks tell what one takes, and so what all take. On a CPU a tiny model tries the script itself.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_report import guarded, milliseconds, peak_mb, tell
from dualtoken.model.config.base import Precision
from dualtoken.model.config.mllm import STREAM_NAMES
from dualtoken.model.config.mllm_costs import MllmShape, drawn_position, mllm_step
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.mllm.generation import draw_codes
from dualtoken.model.mllm.losses import MllmBatch, step_size
from dualtoken.model.mllm.recorded_step import Record, run_plainly
from dualtoken.model.mllm.segments import Segments
from dualtoken.model.mllm.trainer import MllmTrainer
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.expected_mllm import CAPTION_IDS, drawn_seconds, parts_seconds, recipe_shape
from dualtoken.pipelines.runtime.expected_speed import DEVICES, Device, named_device

with vision_imports():
    from transformers import Qwen2Config

TRUNK = "width: 2048, num_heads: 16, num_key_value_heads: 2, mlp_width: 11008, vocabulary: 151936"
"""Dimensions of Qwen2.5-3B; its 36 blocks are given apart."""
ALL_BLOCKS = 36
TINY_TRUNK = "width: 32, num_heads: 2, num_key_value_heads: 1, mlp_width: 64, vocabulary: 512"


class Scale(NamedTuple):
    """What is run on a device."""

    blocks: tuple[int, int]
    """Two numbers of the trunk's blocks."""
    side: int
    """Positions of a row and a column of a drawing: fewer than an image's, since all take equally long."""
    together: tuple[int, ...]
    """Numbers of images that are drawn together."""


GPU = Scale(blocks=(4, 12), side=8, together=(1, 64))
CPU = Scale(blocks=(1, 2), side=2, together=(1, 2))


def mllm_recipe(device: torch.device, blocks: int) -> Recipe:
    """Return a recipe with so many blocks, of which one device takes one sequence a step."""
    on_gpu = device.type == "cuda"
    trunk = TRUNK if on_gpu else TINY_TRUNK
    overrides = [
        f"mllm.trunk={{kind: shape, depth: {blocks}, {trunk}}}",
        "mllm.num_workers=1",
        "mllm.parallel=ddp",
        "mllm.batch_size=1",
        "mllm.accumulate_steps=1",
        "mllm.start_from=null",
        "mllm.optimizer=adamw",
    ]
    if not on_gpu:
        overrides += ["mllm.capacity=256", "mllm.head={width: 32, num_layers: 1, num_heads: 1}"]
    return load_recipe("paper-mllm-256" if on_gpu else "scenes", overrides)


def measure_mllm(device: torch.device) -> None:
    """Time a step of training and a position of a drawing, and tell what all of the model's blocks take."""
    scale = GPU if device.type == "cuda" else CPU
    known = _known_device(device)
    trained: dict[int, float] = {}
    drawn: dict[tuple[str, int], dict[int, float]] = {}
    for blocks in scale.blocks:
        recipe = mllm_recipe(device, blocks)
        model = fresh_mllm(recipe, device)
        guarded(f"training_{blocks}_blocks", partial(_train, recipe, model, known, trained, blocks))
        model.config.grid = [scale.side, scale.side]
        for precision in ("float32", "bfloat16"):
            model.to(getattr(torch, precision)).eval()
            for together in scale.together:
                times = drawn.setdefault((precision, together), {})
                name = f"drawing_{precision}_{together}_together_{blocks}_blocks"
                guarded(name, partial(_draw, recipe, model, known, precision, together, times, blocks))
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    recipe = mllm_recipe(device, ALL_BLOCKS)
    positions = recipe_shape(recipe).images.positions
    tell(
        milliseconds_of_a_step_of_all_blocks=of_all_blocks(trained),
        seconds_an_image_of_all_blocks={
            f"{precision}_{together}_together": round(positions * of_all_blocks(times) / together / 1000, 4)
            for (precision, together), times in drawn.items()
            if len(times) == len(scale.blocks)
        },
    )


def of_all_blocks(times: dict[int, float]) -> float:
    """Return the time of all blocks from those of two numbers of them: what one more takes is the same."""
    (few, time_of_few), (more, time_of_more) = sorted(times.items())
    return time_of_few + (ALL_BLOCKS - few) * (time_of_more - time_of_few) / (more - few)


def _known_device(device: torch.device) -> Device | None:
    if device.type != "cuda":
        return DEVICES["core"]
    return named_device(torch.cuda.get_device_name(device))


def fresh_mllm(recipe: Recipe, device: torch.device) -> DualTokenForConditionalGeneration:
    """Return a model of a recipe with random weights and codes, made on the device."""
    shape = recipe_shape(recipe)
    trunk = shape.trunk
    images = shape.images
    text = Qwen2Config(
        vocab_size=trunk.vocabulary,
        hidden_size=trunk.width,
        intermediate_size=trunk.mlp_width,
        num_hidden_layers=trunk.depth,
        num_attention_heads=trunk.num_heads,
        num_key_value_heads=trunk.num_key_value_heads,
        tie_word_embeddings=True,
    )
    config = DualTokenMllmConfig(
        text,
        head=shape.config.head.model_dump(mode="json"),
        inputs=shape.config.inputs,
        targets=shape.config.targets,
        visual_position=shape.config.visual_position,
        grid=(images.side, images.side),
        depth=images.depth,
        num_codes=dict(images.num_codes),
        code_width=dict(images.code_width),
        tie_word_embeddings=True,
    )
    with torch.device(device):
        torch.manual_seed(0)
        model = DualTokenForConditionalGeneration(config)
        for stream in STREAM_NAMES:
            model.model.code_vectors(stream).table.normal_()
    return model


def packed_batch(shape: MllmShape, capacity: int, device: torch.device) -> MllmBatch:
    """Return a sequence of documents that draw and describe in turn, all image positions at all depths."""
    images = shape.images
    ids: list[Tensor] = []
    is_visual: list[Tensor] = []
    is_target: list[Tensor] = []
    visual_targets: list[Tensor] = []
    bounds = [0]
    length = images.positions + CAPTION_IDS + 3
    generator = torch.Generator().manual_seed(0)
    draws = True
    while bounds[-1] + length <= capacity:
        text = torch.zeros(CAPTION_IDS + 1, dtype=torch.bool)
        picture = torch.ones(images.positions, dtype=torch.bool)
        marker = torch.zeros(1, dtype=torch.bool)
        pieces = (text, picture, marker, marker) if draws else (marker, picture, marker, text)
        is_visual.append(torch.cat(pieces))
        learnt = torch.zeros(length, dtype=torch.bool)
        if not draws:
            learnt[-len(text) :] = True
        is_target.append(learnt)
        visual_targets.append(picture if draws else ~picture)
        ids.append(torch.randint(shape.trunk.vocabulary, (length,), generator=generator))
        bounds.append(bounds[-1] + length)
        draws = not draws
    padding = torch.zeros(capacity - bounds[-1], dtype=torch.bool)
    if len(padding):
        bounds.append(capacity)
    targets = torch.cat(visual_targets)
    codes: dict[str, Tensor] = {}
    for stream in STREAM_NAMES:
        size = (len(targets), images.depth)
        codes[stream] = torch.randint(images.num_codes[stream], size, generator=generator).to(device)
    seqlens = torch.tensor(bounds, dtype=torch.int32)
    return MllmBatch(
        input_ids=torch.cat([*ids, padding.long()])[None].to(device),
        is_visual=torch.cat([*is_visual, padding])[None].to(device),
        codes=codes,
        segments=Segments(seqlens.to(device), int(seqlens.diff().max())),
        text_targets=torch.cat([*is_target, padding])[None].to(device),
        visual_targets=targets.to(device),
        all_depths=targets.to(device),
    )


def _train(
    recipe: Recipe,
    model: DualTokenForConditionalGeneration,
    known: Device | None,
    times: dict[int, float],
    blocks: int,
) -> dict[str, float | None]:
    shape = recipe_shape(recipe)
    config = recipe.mllm
    assert config is not None
    batch = packed_batch(shape, config.capacity, model.device)
    trainer = MllmTrainer(model, config)

    def step() -> None:
        trainer.step = 0
        trainer.train_step([batch])

    taken = milliseconds(step, model.device, rounds=3)
    times[blocks] = taken
    parts = mllm_step(shape, step_size(batch))
    flop = sum(part.flop for part in parts)
    figures: dict[str, float | None] = {
        "milliseconds": taken,
        "positions_per_second": round(1000 * config.capacity / taken, 1),
        "teraflop": round(flop / 1e12, 4),
        "peak_mb": peak_mb(step, model.device),
    }
    if known is not None:
        peak = known.teraflops[config.precision] * 1e12
        expected = parts_seconds(parts, config, known)
        figures["mfu"] = round(1000 * flop / taken / peak, 4)
        figures["expected_milliseconds"] = round(1000 * expected, 3)
        figures["expected_mfu"] = round(flop / expected / peak, 4)
    for parameter in model.parameters():
        parameter.grad = None
    return figures


@torch.no_grad()
def _draw(
    recipe: Recipe,
    model: DualTokenForConditionalGeneration,
    known: Device | None,
    precision: Precision,
    together: int,
    times: dict[int, float],
    blocks: int,
) -> dict[str, float]:
    shape = recipe_shape(recipe)
    config = model.config
    prompts: Sequence[Sequence[int]] = [[*range(CAPTION_IDS), config.image_start_id]] * together
    shape_of_noise = (together, config.image_positions, len(config.targets), config.depth)
    noise = torch.rand(shape_of_noise, generator=torch.Generator().manual_seed(0))

    def draw(record: Record | None = None) -> None:
        start = [config.image_start_id]
        draw_codes(model, prompts, noise, unconditional=start, guidance_scale=3.0, record=record)

    taken = milliseconds(draw, model.device, rounds=3) / config.image_positions
    times[blocks] = taken
    plain = milliseconds(partial(draw, run_plainly), model.device, rounds=3) / config.image_positions
    figures = {"milliseconds_a_position": round(taken, 4), "without_graph": round(plain, 4)}
    if known is not None:
        drawn = drawn_position(shape.config, shape.trunk, shape.images)
        num_slots = CAPTION_IDS + config.image_positions
        expected = sum(drawn_seconds(drawn, known, precision, 2 * together, num_slots))
        size = 2 if precision == "bfloat16" else 4
        bound = size * (drawn.trunk_weights + drawn.head_weights) / (known.terabytes * 1e12)
        figures["expected_milliseconds"] = round(1000 * expected, 4)
        figures["bound_of_weights_milliseconds"] = round(1000 * bound, 4)
    return figures
