"""The unified model's parts beside what others do: heads, losses, packed attention, drawing.

    python -m benchmarks.mllm heads       # D = 8, batch 32: with a cache, and without as VILA-U and ASVR do
    python -m benchmarks.mllm loss        # two images of 729 x 8 x 16,384: memory and time beside full logits
    python -m benchmarks.mllm attention   # a packed step beside transformers' dense mask
    python -m benchmarks.mllm draw        # pictures a second of a model of the scenes' size, with guidance

Ours and the others run in turn in the same process; medians. B positions or images, D depths, K codes.
"""

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import hardware
from dualtoken.model.config.mllm import DepthHeadConfig
from dualtoken.model.mllm.attention import PACKED_SDPA, unmasked
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.depth_heads import DecodingHeads, DepthHead
from dualtoken.model.mllm.generation import draw_codes
from dualtoken.model.mllm.losses import target_losses
from dualtoken.model.mllm.segments import Segments
from dualtoken.model.mllm.text_tokenizer import train_text_tokenizer
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.parse import load_recipe

with vision_imports():
    from transformers import AutoModel, Qwen2Config

ROUNDS = 7


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of each call, all of them once in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_ratios(title: str, seconds: dict[str, float]) -> None:
    """Print the times, and each over the first, which is ours."""
    ours = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{title}: {name} {value * 1e3:.1f} ms, {value / ours:.2f} times ours")


@torch.no_grad()
def compare_heads(depth: int = 8, batch: int = 32, num_codes: int = 2048, width: int = 256) -> None:
    """Predict all depths of a batch of positions, of both streams, by heads of equal size and by VILA-U's."""
    config = DepthHeadConfig(width=width, num_layers=3, num_heads=width // 64)
    heads = _heads(config, depth, num_codes)
    decoding = DecodingHeads(heads)
    hidden = torch.randn(batch, 512)
    tables = torch.randn(2, num_codes, 32)
    # VILA-U's own shape: 6 blocks, 2,560 wide, one MLP of four times the width for all depths.
    wide = DepthHeadConfig(width=2560, num_layers=6, num_heads=40, mlp_width=10240, mlp="shared")
    large = _heads(wide, depth, num_codes)

    def cached() -> None:
        logits = decoding.first_logits(hidden)
        sums = torch.zeros(2, batch, 32)
        for place in range(1, depth):
            chosen = logits.argmax(dim=2)
            sums = sums + torch.stack([table[codes] for table, codes in zip(tables, chosen, strict=True)])
            logits = decoding.next_logits(sums, place)

    def without_cache(of: dict[str, DepthHead], num_computed: Callable[[int], int]) -> None:
        for stream, head in enumerate(of.values()):
            sums = torch.zeros(batch, depth - 1, 32)
            for place in range(depth):
                states = head(hidden, sums[:, : num_computed(place)])
                chosen = (states[:, place] @ head.classifier_weights()[place].T).argmax(dim=1)
                if place < depth - 1:
                    sums[:, place] = tables[stream][chosen] + (sums[:, place - 1] if place else 0)

    seconds = in_turn(
        {
            "with a cache, both streams at once": cached,
            "prefix anew for each depth, streams in turn": lambda: without_cache(heads, lambda n: n),
            "all depths anew for each depth, streams in turn": lambda: without_cache(
                heads, lambda _: depth - 1
            ),
        }
    )
    print_ratios(f"heads, D {depth}, {batch} positions", seconds)
    vila = in_turn({"with a cache": cached, "VILA-U's shape": lambda: without_cache(large, lambda n: n)}, 2)
    print_ratios("heads beside VILA-U's", vila)


def _heads(config: DepthHeadConfig, depth: int, num_codes: int) -> dict[str, DepthHead]:
    made: dict[str, DepthHead] = {}
    for stream in ("semantic", "pixel"):
        made[stream] = DepthHead(
            config, trunk_width=512, depth=depth, num_codes=num_codes, code_width=32
        ).eval()
    return made


LOSS_ROWS = 2 * 729 * 8
LOSS_CODES = 16384
LOSS_WIDTH = 1024


def loss_once(kind: str) -> tuple[float, float]:
    """Return seconds and megabytes of one loss and its gradients, in this process alone."""
    torch.manual_seed(0)
    states = torch.randn(LOSS_ROWS, LOSS_WIDTH, requires_grad=True)
    weight = torch.randn(LOSS_CODES, LOSS_WIDTH, requires_grad=True)
    ids = torch.randint(LOSS_CODES, (LOSS_ROWS,))
    states.grad = torch.zeros_like(states)
    weight.grad = torch.zeros_like(weight)
    before = _peak_mb()
    started = time.perf_counter()
    if kind == "chunked":
        target_losses(states, weight, ids).sum().backward()
    else:
        F.cross_entropy(states @ weight.T, ids, reduction="sum").backward()
    return time.perf_counter() - started, _peak_mb() - before


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_losses() -> None:
    """Run both losses in processes of their own, whose peak of memory tells."""
    measured: dict[str, tuple[float, float]] = {}
    for kind in ("chunked", "full"):
        runs: list[tuple[float, float]] = []
        for _ in range(3):
            command = [sys.executable, "-m", "benchmarks.mllm", "loss-once", "--kind", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  (ourselves)
            of_seconds, of_megabytes = done.stdout.split()[-2:]
            runs.append((float(of_seconds), float(of_megabytes)))
        measured[kind] = min(runs)
        seconds, megabytes = measured[kind]
        print(f"loss of {LOSS_ROWS} x {LOSS_CODES:,}: {kind} {seconds:.2f} s, {megabytes:.0f} MB")
    time_ratio = measured["chunked"][0] / measured["full"][0]
    memory_ratio = measured["chunked"][1] / measured["full"][1]
    print(
        f"loss: chunked takes {time_ratio:.2f} of the time, {memory_ratio:.3f} of the memory of full logits"
    )


def compare_attention(num_documents: int = 40, length: int = 100, width: int = 192) -> None:
    """Take a forward and backward pass of a trunk over packed documents."""
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
    )
    total = num_documents * length
    bounds = torch.arange(0, total + 1, length, dtype=torch.int32)
    segments = Segments(bounds, length)
    places = segments.places()[None]
    document = torch.arange(total) // length
    mask = (document[:, None] == document[None]) & torch.ones(total, total, dtype=torch.bool).tril()
    embedded = torch.randn(1, total, width)
    # A model keeps its configuration, and the attention in it.
    packed = AutoModel.from_config(copy.deepcopy(config), attn_implementation=PACKED_SDPA)
    dense = AutoModel.from_config(config, attn_implementation="sdpa")
    dense.load_state_dict(packed.state_dict())

    def run(model: nn.Module, **options: object) -> Tensor:
        states = model(
            inputs_embeds=embedded, position_ids=places, use_cache=False, **options
        ).last_hidden_state
        states.square().sum().backward()
        return states.detach()

    ours = run(packed, attention_mask=unmasked(embedded), segments=segments)
    theirs = run(dense, attention_mask=mask[None, None])
    print(f"attention: largest difference {(ours - theirs).abs().max().item():.1e}")
    seconds = in_turn(
        {
            "packed": lambda: run(packed, attention_mask=unmasked(embedded), segments=segments),
            "dense mask": lambda: run(dense, attention_mask=mask[None, None]),
        }
    )
    print_ratios(f"step of {num_documents} documents of {length}", seconds)


def draw_scenes(num_images: int = 64) -> None:
    """Draw pictures by an untrained model of the scenes' recipe, with guidance and without."""
    recipe = load_recipe("scenes")
    assert recipe.mllm is not None
    vision = DualTokenizer(recipe.tokenizer).eval()
    text = train_text_tokenizer(
        ["a small red ring at the top left and a large blue cross at the top right"], 300
    )
    model = build_mllm(recipe.mllm, vision, "0" * 64, text).eval()
    prompt = [*range(270, 290), model.config.image_start_id]
    config = model.config
    noise = torch.rand(num_images, config.image_positions, len(config.targets), config.depth)
    for scale in (1.0, 3.0):
        started = time.perf_counter()
        prompts = [prompt] * num_images
        codes = draw_codes(model, prompts, noise, unconditional=prompt[-1:], guidance_scale=scale)
        side = vision.config.grid_size
        vision.decode(codes["pixel"].unflatten(1, (side, side)))
        rate = num_images / (time.perf_counter() - started)
        print(f"drawing {num_images} pictures at guidance {scale:g}: {rate:.1f} a second")


def main() -> None:
    """Run the comparisons that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=["heads", "loss", "loss-once", "attention", "draw"])
    parser.add_argument("--kind", default="chunked")
    arguments = parser.parse_args()
    if arguments.what == ["loss-once"]:
        print(*loss_once(arguments.kind))
        return
    print(hardware(torch.device("cpu")))
    comparisons = {
        "heads": compare_heads,
        "loss": compare_losses,
        "attention": compare_attention,
        "draw": draw_scenes,
    }
    for name in arguments.what:
        comparisons[name]()


if __name__ == "__main__":
    main()
