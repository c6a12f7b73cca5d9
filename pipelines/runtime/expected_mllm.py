"""Expected speed and memory of the unified model on a device: its training, and its drawing, by part.

Counts come from `model.config.mllm_costs`, rates from the device's data sheet, as in `expected_speed`. A part
takes the longer of two times for its products, its operations at the device's rate or its numbers at the
memory's, and the memory's time for everything else: passes that no compiler has fused. What workers send each
other is left out. Nothing here was measured on these cards by us. Imports no torch.
"""

from typing import NamedTuple

from dualtoken.model.config.base import Precision
from dualtoken.model.config.mllm_costs import (
    Drawing,
    MllmPart,
    MllmShape,
    StepSize,
    drawn_position,
    image_codes,
    mllm_step,
    non_block_weights,
)
from dualtoken.model.config.optimizer import MuonConfig
from dualtoken.model.config.step_costs import pictures
from dualtoken.model.config.trunk_dimensions import trunk_dimensions
from dualtoken.pipelines.config.mllm import DocumentName, MllmStageConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.expected_speed import REACHED, REACHED_OF_MEMORY, Device

CAPTION_IDS = 39
"""Ids of a caption, assumed: a plan reads none."""
TURN_IDS = 16
"""Ids of a question and its answer with their markers, assumed likewise."""
ANSWER_IDS = 4
"""Those of them that are learnt."""
TURNS = 12
"""Questions of a document where `max_turns` sets no limit: as many as a generated scene has."""
MARKER_IDS = 3
"""Ids around an image and at the end of its document."""
DRAWING_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
"""Precisions of drawing: `dualtoken generate` draws in the first."""
_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
_ADAMW_MOVED = 7
"""Numbers that AdamW reads and writes of a weight: itself, its gradient and two moments."""
_LOGITS_BYTES = 2 * 4 * 2**24
"""Bytes of the logits that are computed at once, with their gradient (`model.mllm.losses.MOST_LOGITS`)."""


class ExpectedDocuments(NamedTuple):
    """Documents of a recipe, on average."""

    length: float
    """Positions of a document."""
    attended: float
    """Pairs of positions of a document of which one is read for the other."""
    text_targets: float
    """Text ids of a document that are learnt."""
    visual: float
    """Image positions of a document."""
    visual_targets: float
    """Those of them whose codes are learnt."""

    def step_size(self, num_positions: int, depth_share: float) -> StepSize:
        """Return the size of a step of so many positions."""
        num_documents = num_positions / self.length
        visual_targets = num_documents * self.visual_targets
        return StepSize(
            positions=num_positions,
            attended=round(num_documents * self.attended),
            text_targets=round(num_documents * self.text_targets),
            visual=round(num_documents * self.visual),
            visual_targets=round(visual_targets),
            all_depths=round(depth_share * visual_targets),
        )


class ExpectedMllmPart(NamedTuple):
    """What is expected of one part of the model in training, forward and backward."""

    part: str
    parameters: int
    gigaflop: float
    """Operations of a position, 10^9."""
    microseconds: float
    """Time of a position."""


class ExpectedMemory(NamedTuple):
    """Memory of one device in training, bytes."""

    weights: float
    """Weights, and those of other workers while they are gathered."""
    gradients: float
    optimizer: float
    copies: float
    """Weights in the precision of the arithmetic, where that is another."""
    activations: float
    """What a part of a batch keeps for its backward pass, and the logits of a chunk."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class ExpectedTraining(NamedTuple):
    """What is expected of the training, on one device with its share of the batch."""

    precision: Precision
    parts: tuple[ExpectedMllmPart, ...]
    memory: ExpectedMemory
    document_length: float
    """Positions of a document on average."""
    step_seconds: float
    step_flop: float
    """Operations of a device's share of a step, none of them done twice."""
    num_positions: int
    """Positions of a device's share of a step."""
    utilization: float
    """Share of the device's highest rate that the operations use (MFU)."""

    @property
    def positions_per_second(self) -> float:
        """Positions a second of one device."""
        return self.num_positions / self.step_seconds

    @property
    def documents_per_second(self) -> float:
        """Documents a second of one device."""
        return self.positions_per_second / self.document_length


class ExpectedDrawing(NamedTuple):
    """What is expected of drawing images together, on one device: seconds of all of them by part."""

    precision: Precision
    num_images: int
    trunk: float
    heads: float
    cache: float
    """Reading keys and values."""
    decoder: float
    """From pixel codes to pictures, in float32."""

    @property
    def seconds(self) -> float:
        """Time of all images."""
        return self.trunk + self.heads + self.cache + self.decoder


def recipe_shape(recipe: Recipe) -> MllmShape:
    """Return what a recipe's costs follow from; raises ValueError for a trunk that is not known here."""
    config = _config(recipe)
    return MllmShape(config, trunk_dimensions(config.trunk), image_codes(recipe.tokenizer))


def _config(recipe: Recipe) -> MllmStageConfig:
    assert recipe.mllm is not None, "asked of recipes with the key mllm"
    return recipe.mllm


def expected_documents(config: MllmStageConfig, image_positions: int) -> ExpectedDocuments:
    """Return the documents that a recipe makes on average, of captions and questions of assumed lengths."""
    documents = config.documents
    image = image_positions + MARKER_IDS
    turns = documents.max_turns or TURNS
    caption = CAPTION_IDS * (1 - documents.caption_dropout)
    lengths: dict[DocumentName, float] = {
        "draw": image + caption,
        "describe": image + CAPTION_IDS,
        "answer": image + turns * TURN_IDS,
        "text": CAPTION_IDS + 1,
    }
    attended = {name: length**2 for name, length in lengths.items()}
    if documents.turns_apart:
        attended["answer"] = image**2 + turns * TURN_IDS * (image + TURN_IDS)
    learnt: dict[DocumentName, float] = {
        "draw": caption + 2 if documents.learn_prompts else 0,
        "describe": CAPTION_IDS + 1,
        "answer": turns * ANSWER_IDS,
        "text": CAPTION_IDS + 1,
    }
    total = sum(documents.shares.values())
    shares: dict[DocumentName, float] = {name: share / total for name, share in documents.shares.items()}
    with_image = 1 - shares.get("text", 0.0)
    drawn = with_image if documents.learn_read_images else shares.get("draw", 0.0)
    return ExpectedDocuments(
        length=sum(share * lengths[name] for name, share in shares.items()),
        attended=sum(share * attended[name] for name, share in shares.items()),
        text_targets=sum(share * learnt[name] for name, share in shares.items()),
        visual=with_image * image_positions,
        visual_targets=drawn * image_positions if config.targets else 0.0,
    )


def expected_training(recipe: Recipe, device: Device) -> ExpectedTraining:
    """Return what is expected of a recipe's training on one of its devices.

    Raises ValueError for a trunk whose layers are not known.
    """
    config = _config(recipe)
    shape = recipe_shape(recipe)
    documents = expected_documents(config, shape.images.positions)
    num_positions = config.batch_size * config.capacity // config.num_workers
    at_once = num_positions // config.accumulate_steps
    parts = mllm_step(shape, documents.step_size(at_once, config.depth_share))
    expected: list[ExpectedMllmPart] = []
    for part in parts:
        seconds = _part_seconds(part, config.precision, device)
        gigaflop = part.flop / at_once / 1e9
        expected.append(ExpectedMllmPart(part.name, part.num_weights, gigaflop, 1e6 * seconds / at_once))
    optimizer = 1e6 * _optimizer_seconds(config, parts, device) / num_positions
    expected.append(ExpectedMllmPart("optimiser", 0, 0.0, optimizer))
    step_seconds = num_positions * sum(part.microseconds for part in expected) / 1e6
    step_flop = config.accumulate_steps * sum(part.flop for part in parts)
    peak = device.teraflops[config.precision] * 1e12
    return ExpectedTraining(
        precision=config.precision,
        parts=tuple(expected),
        memory=_memory(shape, config, parts),
        document_length=documents.length,
        step_seconds=step_seconds,
        step_flop=step_flop,
        num_positions=num_positions,
        utilization=step_flop / (step_seconds * peak),
    )


def _part_seconds(part: MllmPart, precision: Precision, device: Device) -> float:
    computing = part.flop / (device.teraflops[precision] * 1e12 * REACHED)
    moving = _moving_seconds(part.products.moved * _BYTES[precision], device)
    passes = part.passes.moved * _BYTES[precision] + 4 * part.float32.moved
    return max(computing, moving) + _moving_seconds(passes, device)


def parts_seconds(parts: list[MllmPart], config: MllmStageConfig, device: Device) -> float:
    """Return the time of a step of these parts, which a device takes at once, with its update."""
    passes = sum(_part_seconds(part, config.precision, device) for part in parts)
    return passes + _optimizer_seconds(config, parts, device)


def _moving_seconds(num_bytes: float, device: Device) -> float:
    return num_bytes / (device.terabytes * 1e12 * REACHED_OF_MEMORY)


def _optimizer_seconds(config: MllmStageConfig, parts: list[MllmPart], device: Device) -> float:
    """Return the time of a device's share of the update, and of bringing weights to the precision."""
    shards = _shards(config)
    trained = sum(part.num_trained for part in parts)
    moved = 4 * _ADAMW_MOVED * trained / shards
    if config.precision == "bfloat16":
        moved += config.accumulate_steps * (4 + 2) * sum(part.num_weights for part in parts)
    seconds = _moving_seconds(moved, device)
    if isinstance(config.optimizer, MuonConfig):
        flop = 0
        for part in parts:
            for matrix in part.matrices:
                short, long = sorted(matrix)
                flop += config.optimizer.num_iterations * (4 * short**2 * long + 2 * short**3)
        # Every worker brings all matrices to their steps.
        rate = device.teraflops["float32" if device.memory_gb is None else "bfloat16"]
        seconds += flop / (rate * 1e12 * REACHED)
    return seconds


def _shards(config: MllmStageConfig) -> int:
    """Return the number of devices that weights and optimiser are shared among."""
    return config.num_workers if config.parallel == "fsdp2" else 1


def _memory(shape: MllmShape, config: MllmStageConfig, parts: list[MllmPart]) -> ExpectedMemory:
    shards = _shards(config)
    num_weights = sum(part.num_weights for part in parts)
    trained = sum(part.num_trained for part in parts)
    matrices = 0
    if isinstance(config.optimizer, MuonConfig):
        matrices = sum(rows * columns for part in parts for rows, columns in part.matrices)
    weights = 4 * num_weights / shards
    gradients = 4 * trained / shards
    if shards > 1:
        outside, block = non_block_weights(shape)
        # What is in no block stays gathered in a step; blocks come and go, the next one early.
        weights += 4 * (outside + 2 * block)
        if config.accumulate_steps > 1:
            # Summed as whole ones, until the last part of the batch.
            gradients += 4 * trained
    activations = float(_LOGITS_BYTES)
    for part in parts:
        saved = part.products.saved + part.passes.saved
        activations += saved * _BYTES[config.precision] + 4 * part.float32.saved
    return ExpectedMemory(
        weights=weights,
        gradients=gradients,
        # One moment of Muon's matrices, two of AdamW's weights.
        optimizer=4 * (2 * trained - matrices) / shards,
        copies=2.0 * num_weights if config.precision == "bfloat16" else 0.0,
        activations=activations,
    )


def expected_drawing(
    recipe: Recipe, device: Device, precision: Precision, num_images: int
) -> ExpectedDrawing:
    """Return what is expected of drawing captions together, with the guidance that `examine` draws by.

    Every position reads the weights of trunk and heads once for all images, and the whole cache.
    Raises ValueError for a trunk whose layers are not known.
    """
    config = _config(recipe)
    shape = recipe_shape(recipe)
    drawn = drawn_position(config, shape.trunk, shape.images)
    num_rows = num_images * (1 if recipe.examine.drawing(config.drawing).guidance_scale == 1 else 2)
    num_slots = CAPTION_IDS + 1 + shape.images.positions - 1
    by_position = drawn_seconds(drawn, device, precision, num_rows, num_slots)
    trunk, heads, cache = (shape.images.positions * seconds for seconds in by_position)
    picture = pictures(recipe.tokenizer)
    computing = picture.flop / (device.teraflops["float32"] * 1e12 * REACHED)
    decoder = num_images * max(computing, _moving_seconds(4 * picture.moved, device))
    return ExpectedDrawing(precision, num_images, trunk, heads, cache, decoder)


def drawn_seconds(
    drawn: Drawing, device: Device, precision: Precision, num_rows: int, num_slots: int
) -> tuple[float, float, float]:
    """Return the times of a position in trunk, heads and cache."""
    size = _BYTES[precision]
    rate = device.teraflops[precision] * 1e12 * REACHED
    trunk = max(_moving_seconds(size * drawn.trunk_weights, device), num_rows * drawn.trunk_flop / rate)
    heads = max(_moving_seconds(size * drawn.head_weights, device), num_rows * drawn.head_flop / rate)
    cache = _moving_seconds(size * drawn.cached * num_rows * num_slots, device)
    return trunk, heads, cache
