"""Costs of the unified model, counted from its shape and from what is trained. Imports no torch.

A layer's backward pass costs a product for the gradient of its inputs, where something before it is trained,
and one for that of its weights, where these are. So frozen parts and adapters count as they are computed, by
the names of the parameters. Operations are counted as in `costs`: of attention all pairs of a position and of
those that its document reads, as torch and the usual formulas count, though half of them are masked. Turns
that are apart read their image each; what a GPU keeps of its keys and values once a turn is left out.

Numbers moved and saved are those of transformers' layers as they are, without a compiler: norms, rotations
and activations are separate passes. Norms and the residual stream are float32 in any precision.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dualtoken.model.config.costs import Cost
from dualtoken.model.config.mllm import LoraConfig, MllmConfig, MllmTrainingConfig, StreamName
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.trunk_dimensions import TrunkDimensions

_TRUNK = "model.language_model"
_BACKWARD = 2
"""Numbers that the backward pass of a layer without products moves, over those of its forward pass."""


class ImageCodes(NamedTuple):
    """What an image is to the model."""

    positions: int
    """Positions of an image."""
    side: int
    """Positions of a row and of a column."""
    depth: int
    """Codes of a position, of each stream."""
    num_codes: Mapping[str, int]
    code_width: Mapping[str, int]
    """Channels of a code's vector."""


def image_codes(tokenizer: TokenizerConfig) -> ImageCodes:
    """Return what the images of a tokenizer are."""
    quantizers = {"semantic": tokenizer.semantic, "pixel": tokenizer.pixel}
    return ImageCodes(
        positions=tokenizer.grid_size**2,
        side=tokenizer.grid_size,
        depth=tokenizer.pixel.depth,
        num_codes={stream: quantizer.num_codes for stream, quantizer in quantizers.items()},
        code_width={stream: quantizer.width for stream, quantizer in quantizers.items()},
    )


class MllmShape(NamedTuple):
    """All that the cost of a model follows from."""

    config: MllmTrainingConfig
    trunk: TrunkDimensions
    images: ImageCodes


class StepSize(NamedTuple):
    """What a step, or a part of one, has to compute."""

    positions: int
    """Positions of all sequences, those of padding included."""
    attended: int
    """Pairs that attention is computed for: of each segment its length times that of all that it reads, which
    is itself, or a turn and its image."""
    text_targets: int
    """Text ids that are predicted."""
    visual: int
    """Image positions that are read."""
    visual_targets: int
    """Image positions whose codes are predicted."""
    all_depths: int
    """Those of them whose codes are predicted at all depths; of the others only the first is."""

    def plus(self, other: "StepSize") -> "StepSize":
        """Return the size of both together."""
        return StepSize(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class MllmPart(NamedTuple):
    """Cost of a part of the model in a step, forward and backward."""

    name: str
    products: Cost
    """Products and attention; their `moved` and `saved` are numbers of the training's precision."""
    passes: Cost
    """Everything else, likewise."""
    float32: Cost
    """Numbers that are float32 in any precision."""
    num_weights: int
    """Parameters, frozen ones included."""
    num_trained: int
    """Parameters that are trained."""
    matrices: tuple[tuple[int, int], ...]
    """Shapes of the trained ones that are factors of products."""

    @property
    def flop(self) -> int:
        """Operations of the part."""
        return self.products.flop


def mllm_step(shape: MllmShape, size: StepSize) -> list[MllmPart]:
    """Return the parts of a step of training: projector, trunk, text head, depth heads."""
    config = shape.config
    trunk = shape.trunk
    projector = _Part("projector", config.trains)
    images_flow = _project(projector, shape, size.visual)
    body = _Part("trunk", config.trains)
    embeddings_flow = body.table(f"{_TRUNK}.embed_tokens.weight", trunk.vocabulary * trunk.width)
    flows = _run_trunk(body, shape, size, flows=images_flow or embeddings_flow)

    text = _Part("text head", config.trains)
    head = f"{_TRUNK}.embed_tokens.weight" if trunk.is_tied else "lm_head.weight"
    layer = _Layer(head, trunk.vocabulary, is_counted=not trunk.is_tied)
    text.linears([layer], size.text_targets, trunk.width, flows=flows)
    text.cross_entropy(size.text_targets * trunk.vocabulary)
    parts = [projector.cost(), body.cost(), text.cost()]
    if config.targets:
        heads = _Part("depth heads", config.trains)
        for stream in config.targets:
            _predict_codes(heads, shape, stream, size, flows=flows)
        parts.append(heads.cost())
    return parts


class Drawing(NamedTuple):
    """What drawing one position of an image takes, of each part by itself."""

    trunk_weights: int
    """Weights of the trunk that are read."""
    head_weights: int
    """Weights of the heads that are read, those of attention once for each depth."""
    cached: int
    """Numbers of keys and values of a position of the trunk."""
    trunk_flop: int
    """Operations of a row, attention left out."""
    head_flop: int
    """Operations of a row."""


def drawn_position(config: MllmConfig, trunk: TrunkDimensions, images: ImageCodes) -> Drawing:
    """Return what a position of an image takes to be drawn, with a cache over positions and over depths."""
    blocks = trunk.depth * _block_weights(trunk)
    of_heads = 0
    for stream in config.targets:
        of_heads += _head_reads(config, trunk, images, stream)
    read_width = sum(images.code_width[stream] for stream in config.inputs)
    projector = trunk.width * (read_width + trunk.width)
    return Drawing(
        trunk_weights=blocks + projector,
        head_weights=of_heads,
        cached=2 * trunk.depth * trunk.key_width,
        trunk_flop=2 * (blocks + projector),
        head_flop=2 * of_heads,
    )


def non_block_weights(shape: MllmShape) -> tuple[int, int]:
    """Return the weights that are in no block of trunk or heads, and those of the largest block."""
    config = shape.config
    trunk = shape.trunk
    head = config.head
    mlps = shape.images.depth if head.mlp == "per_depth" else 1
    head_block = 4 * head.width**2 + 2 * mlps * head.width * head.inner_width
    in_blocks = trunk.depth * _block_weights(trunk)
    in_blocks += len(config.targets) * head.num_layers * head_block
    nothing = StepSize(0, 0, 0, 0, 0, 0)
    num_weights = sum(part.num_weights for part in mllm_step(shape, nothing))
    return num_weights - in_blocks, max(head_block, _block_weights(trunk))


def _block_weights(trunk: TrunkDimensions) -> int:
    """Return the weights of the products of a block."""
    attention = 2 * trunk.width * (trunk.query_width + trunk.key_width)
    return attention + 3 * trunk.width * trunk.mlp_width


def _head_reads(config: MllmConfig, trunk: TrunkDimensions, images: ImageCodes, stream: StreamName) -> int:
    """Return the weights that a head reads to predict all codes of a position."""
    head = config.head
    width = head.width
    first = trunk.width * width + width**2
    later = (images.depth - 1) * images.code_width[stream] * width
    block = 4 * width**2 + 2 * width * head.inner_width
    classifier = width * images.num_codes[stream]
    return first + later + images.depth * (head.num_layers * block + classifier)


class _Layer(NamedTuple):
    """A linear layer among those that read the same numbers."""

    name: str
    """Name of its weight."""
    outputs: int
    bias: str = ""
    """Name of its bias; empty without one."""
    is_counted: bool = True
    """Whether its weight counts as a parameter: a tied one counts once."""


class _Part:
    """Adds up the layers of a part in the order of the forward pass, each with its backward pass.

    `flows` says whether a layer's inputs have a gradient; each method returns whether its outputs do.
    """

    def __init__(self, name: str, trains: Callable[[str], bool]) -> None:
        self._name = name
        self._trains = trains
        self._products = Cost()
        self._passes = Cost()
        self._float32 = Cost()
        self._num_weights = 0
        self._num_trained = 0
        self._matrices: list[tuple[int, int]] = []

    def cost(self) -> MllmPart:
        """Return what was added up."""
        return MllmPart(
            self._name,
            self._products,
            self._passes,
            self._float32,
            self._num_weights,
            self._num_trained,
            tuple(self._matrices),
        )

    def table(self, name: str, numbers: int) -> bool:
        """Count a parameter that no product is taken with."""
        self._num_weights += numbers
        is_trained = self._trains(name)
        if is_trained:
            self._num_trained += numbers
        return is_trained

    def linears(self, layers: list[_Layer], tokens: int, inputs: int, *, flows: bool) -> bool:
        """Count linear layers that read the same tokens, which wait for the backward pass once."""
        outputs_flow = flows
        is_saved = False
        for layer in layers:
            is_trained = self._weight(layer, inputs)
            passes = 1 + int(flows) + int(is_trained)
            moved = passes * tokens * (inputs + layer.outputs)
            self._products += Cost(passes * 2 * tokens * inputs * layer.outputs, moved)
            is_saved = is_saved or is_trained
            outputs_flow = outputs_flow or is_trained
            if layer.bias:
                outputs_flow = self.table(layer.bias, layer.outputs) or outputs_flow
        if is_saved:
            self._products += Cost(saved=tokens * inputs)
        return outputs_flow

    def _weight(self, layer: _Layer, inputs: int) -> bool:
        is_trained = self._trains(layer.name)
        if layer.is_counted:
            self._num_weights += inputs * layer.outputs
            if is_trained:
                self._num_trained += inputs * layer.outputs
                self._matrices.append((layer.outputs, inputs))
        return is_trained

    def attention(self, pairs: int, queries: int, keys: int, query_width: int, *, flows: bool) -> None:
        """Count fused attention; `queries` and `keys` are numbers of all positions together."""
        forward = 4 * pairs * query_width
        # Backward are five products in place of two.
        flop = forward + (5 * forward // 2 if flows else 0)
        moved = 2 * queries + keys
        saved = queries + keys if flows else 0
        self._products += Cost(flop, moved * (1 + _BACKWARD * int(flows)), saved=saved, attention=flop)

    def norm(self, name: str, tokens: int, width: int, *, flows: bool) -> bool:
        """Count an RMSNorm: squares, their mean, and two products with what it reads."""
        is_trained = self.table(name, width)
        outputs_flow = flows or is_trained
        self._add_float32(7 * tokens * width, 2 * tokens * width, flows=outputs_flow)
        return outputs_flow

    def residual(self, numbers: int, *, flows: bool) -> None:
        """Count the sum with the residual stream, which nothing is kept of."""
        self._add_float32(2 * numbers, 0, flows=flows)
        self._add_pass(numbers, 0, flows=flows)

    def rotation(self, numbers: int, *, flows: bool) -> None:
        """Count the rotation of queries and keys by their places."""
        self._add_float32(5 * numbers, 0, flows=flows)
        self._add_pass(6 * numbers, 0, flows=flows)

    def gated(self, numbers: int, *, flows: bool) -> None:
        """Count an activation times what it gates."""
        self._add_pass(5 * numbers, 3 * numbers, flows=flows)

    def activation(self, numbers: int, *, flows: bool) -> None:
        """Count an activation."""
        self._add_pass(2 * numbers, numbers, flows=flows)

    def cross_entropy(self, logits: int) -> None:
        """Count a loss over logits, which are made in chunks and never kept."""
        self._add_float32(3 * logits, 0, flows=False)

    def _add_float32(self, moved: int, saved: int, *, flows: bool) -> None:
        self._float32 += _both_ways(moved, saved, flows=flows)

    def _add_pass(self, moved: int, saved: int, *, flows: bool) -> None:
        self._passes += _both_ways(moved, saved, flows=flows)


def _both_ways(moved: int, saved: int, *, flows: bool) -> Cost:
    if not flows:
        return Cost(moved=moved)
    return Cost(moved=(1 + _BACKWARD) * moved, saved=saved)


def _project(part: _Part, shape: MllmShape, visual: int) -> bool:
    """Count the projector of image positions, and the vectors of rows and columns."""
    images = shape.images
    width = shape.trunk.width
    name = "model.visual_projector"
    read_width = sum(images.code_width[stream] for stream in shape.config.inputs)
    up = _Layer(f"{name}.up.weight", width, f"{name}.up.bias")
    out = _Layer(f"{name}.out.weight", width, f"{name}.out.bias")
    flows = part.linears([up], visual, read_width, flows=False)
    part.activation(visual * width, flows=flows)
    flows = part.linears([out], visual, width, flows=flows)
    if shape.config.visual_position == "learned":
        for axis in ("rows", "columns"):
            learns = part.table(f"model.visual_positions.{axis}.weight", images.side * width)
            flows = flows or learns
    # A step without images has nothing that flows from here.
    return flows and visual > 0


def _run_trunk(part: _Part, shape: MllmShape, size: StepSize, *, flows: bool) -> bool:
    """Count the blocks and the last norm; adapters stand beside the layers that they are of."""
    trunk = shape.trunk
    tokens = size.positions
    for number in range(trunk.depth):
        block = f"{_TRUNK}.layers.{number}"
        inner = part.norm(f"{block}.input_layernorm.weight", tokens, trunk.width, flows=flows)
        outputs = {"q_proj": trunk.query_width, "k_proj": trunk.key_width, "v_proj": trunk.key_width}
        inner = _adapted(part, shape, f"{block}.self_attn", outputs, trunk.width, tokens, flows=inner)
        part.rotation(tokens * (trunk.query_width + trunk.key_width), flows=inner)
        part.attention(
            size.attended,
            tokens * trunk.query_width,
            2 * tokens * trunk.key_width,
            trunk.query_width,
            flows=inner,
        )
        outputs = {"o_proj": trunk.width}
        inner = _adapted(part, shape, f"{block}.self_attn", outputs, trunk.query_width, tokens, flows=inner)
        flows = flows or inner
        part.residual(tokens * trunk.width, flows=flows)

        inner = part.norm(f"{block}.post_attention_layernorm.weight", tokens, trunk.width, flows=flows)
        outputs = {"gate_proj": trunk.mlp_width, "up_proj": trunk.mlp_width}
        inner = _adapted(part, shape, f"{block}.mlp", outputs, trunk.width, tokens, flows=inner)
        part.gated(tokens * trunk.mlp_width, flows=inner)
        outputs = {"down_proj": trunk.width}
        inner = _adapted(part, shape, f"{block}.mlp", outputs, trunk.mlp_width, tokens, flows=inner)
        flows = flows or inner
        part.residual(tokens * trunk.width, flows=flows)
    return part.norm(f"{_TRUNK}.norm.weight", tokens, trunk.width, flows=flows)


def _adapted(
    part: _Part,
    shape: MllmShape,
    module: str,
    outputs: Mapping[str, int],
    inputs: int,
    tokens: int,
    *,
    flows: bool,
) -> bool:
    """Count linear layers of the trunk that read the same tokens, with their adapters."""
    lora = shape.config.lora
    layers: list[_Layer] = []
    downs: list[_Layer] = []
    ups: list[_Layer] = []
    for name, width in outputs.items():
        layer = f"{module}.{name}"
        base = layer
        if lora is not None and _has_adapter(lora, layer):
            base = f"{layer}.base_layer"
            downs.append(_Layer(f"{layer}.lora_A.default.weight", lora.rank))
            ups.append(_Layer(f"{layer}.lora_B.default.weight", width))
        bias = f"{base}.bias" if name in shape.trunk.biases else ""
        layers.append(_Layer(f"{base}.weight", width, bias))
    outputs_flow = part.linears([*layers, *downs], tokens, inputs, flows=flows)
    for down, up in zip(downs, ups, strict=True):
        adapter_flows = flows or shape.config.trains(down.name)
        outputs_flow = part.linears([up], tokens, down.outputs, flows=adapter_flows) or outputs_flow
        part.residual(tokens * up.outputs, flows=outputs_flow)
    return outputs_flow


def _has_adapter(lora: LoraConfig, layer: str) -> bool:
    if lora.target_modules == "all-linear":
        return True
    return any(layer == target or layer.endswith(f".{target}") for target in lora.target_modules)


def _predict_codes(part: _Part, shape: MllmShape, stream: StreamName, size: StepSize, *, flows: bool) -> None:
    """Count one stream's head: some positions at all depths, the others at the first."""
    head = shape.config.head
    depth = shape.images.depth
    width = head.width
    name = f"heads.{stream}"
    whole = size.all_depths
    first = size.visual_targets - whole
    up = _Layer(f"{name}.project_up.weight", width, f"{name}.project_up.bias")
    out = _Layer(f"{name}.project_out.weight", width, f"{name}.project_out.bias")
    code_in = _Layer(f"{name}.code_in.weight", width, f"{name}.code_in.bias")
    flows = part.linears([up], whole + first, shape.trunk.width, flows=flows)
    part.activation((whole + first) * width, flows=flows)
    flows = part.linears([out], whole + first, width, flows=flows)
    codes_flow = part.linears([code_in], whole * (depth - 1), shape.images.code_width[stream], flows=False)
    flows = flows or codes_flow
    for number in range(head.num_layers):
        flows = _head_block(part, shape, f"{name}.blocks.{number}", whole, first, flows=flows)
    states = whole * depth + first
    flows = part.norm(f"{name}.norm.weight", states, width, flows=flows)
    num_codes = shape.images.num_codes[stream]
    for place in range(depth):
        of_depth = whole if place else whole + first
        classifier = _Layer(f"{name}.classifiers.{place}.weight", num_codes)
        part.linears([classifier], of_depth, width, flows=flows)
    part.cross_entropy(states * num_codes)


def _head_block(part: _Part, shape: MllmShape, name: str, whole: int, first: int, *, flows: bool) -> bool:
    head = shape.config.head
    depth = shape.images.depth
    width = head.width
    states = whole * depth + first
    inner = part.norm(f"{name}.attention_norm.weight", states, width, flows=flows)
    inner = part.linears([_Layer(f"{name}.qkv.weight", 3 * width)], states, width, flows=inner)
    pairs = whole * depth**2 + first
    part.attention(pairs, states * width, 2 * states * width, width, flows=inner)
    inner = part.linears([_Layer(f"{name}.attention_out.weight", width)], states, width, flows=inner)
    flows = flows or inner
    part.residual(states * width, flows=flows)

    normed = part.norm(f"{name}.mlp_norm.weight", states, width, flows=flows)
    of_mlps = {0: states}
    if head.mlp == "per_depth":
        of_mlps = {place: whole if place else whole + first for place in range(depth)}
    for place, tokens in of_mlps.items():
        up = _Layer(f"{name}.mlp_up.{place}.weight", head.inner_width)
        down = _Layer(f"{name}.mlp_down.{place}.weight", width)
        inner = part.linears([up], tokens, width, flows=normed)
        part.activation(tokens * head.inner_width, flows=inner)
        flows = part.linears([down], tokens, head.inner_width, flows=inner) or flows
    part.residual(states * width, flows=flows)
    return flows
