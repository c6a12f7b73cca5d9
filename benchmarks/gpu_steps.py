"""The steps of `benchmarks.gpu`, the most telling first: cut after the fourth, it has told the main rows.

Run one: python -m benchmarks.gpu_steps NAME --device cuda. Each prints its results as it finds them. On a CPU
they run a small model, to try the script itself.
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import dualtoken
from benchmarks.gpu_mllm_steps import measure_mllm
from benchmarks.gpu_report import (
    fresh_tokenizer,
    guarded,
    largest_kernels,
    milliseconds,
    nvidia_smi,
    random_images,
    recipe_for,
    tell,
)
from benchmarks.gpu_training_steps import (
    check_errors,
    measure_compiled,
    measure_data_parallel,
    measure_decoder,
    measure_pretokenize,
    measure_training,
)
from benchmarks.throughput import matmul_rate
from dualtoken.infra.nvidia_driver import driver_version
from dualtoken.model.config.quantizer import QuantizerConfig, ScalarQuantizerConfig, SplitQuantizerConfig
from dualtoken.model.config.step_costs import encoder, searches
from dualtoken.model.precision import Precision, forbid_tf32, tower_precision
from dualtoken.model.quantize import build_quantizer
from dualtoken.model.quantize.residual_search import residual_codes

PROJECT = Path(__file__).resolve().parents[1]
BUILDS = (
    "import torch,time; from dualtoken.model.quantize import triton_kernel as k; s=time.time(); "
    "k.fused_residual_codes(torch.randn(2,{rows},32,device='cuda'),"
    "torch.randn(2,1,16384,32,device='cuda'),8); "
    "torch.cuda.synchronize(); print(round(time.time()-s,1))"
)
"""Program that builds and runs the fused kernel once, on few or many rows."""


class Step(NamedTuple):
    """One step of the benchmark."""

    name: str
    seconds: float
    """Time after which it is ended."""
    tells: str
    """What its results decide."""
    run: Callable[[torch.device], None]


def describe_machine(device: torch.device) -> None:
    """Tell driver, clocks, versions and flags; import every module; build the kernel in four processes."""
    tell(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        driver=driver_version(),
        card=nvidia_smi("gpu=name,driver_version,clocks.sm,clocks.mem,ecc.mode.current,memory.total"),
        tf32=(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    )
    failed: dict[str, str] = {}
    num_modules = 0
    for module in pkgutil.walk_packages(dualtoken.__path__, "dualtoken."):
        num_modules += 1
        try:
            importlib.import_module(module.name)
        except Exception as error:  # noqa: BLE001  (told as the result)
            failed[module.name] = f"{type(error).__name__}: {error}"
    tell(modules=num_modules, modules_that_fail=failed)
    if device.type != "cuda":
        return
    builds = []
    for rows in (729, 729 * 16, 729, 729 * 16):
        command = [sys.executable, "-c", BUILDS.format(rows=rows)]
        builds.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))  # noqa: S603
    outcomes = [build.communicate() for build in builds]
    tell(kernel_builds_seconds=[out.strip() or error[-300:] for out, error in outcomes])


def check_kernel(device: torch.device) -> None:
    """Compare codes of the device with a CPU's, bit for bit, in every way that the search is called."""
    if device.type == "cuda":
        check = [sys.executable, str(PROJECT / "tests/model/quantize/triton_check.py"), "--device", "cuda"]
        ran = subprocess.run(check, capture_output=True, text=True, check=False, cwd=PROJECT)  # noqa: S603
        tell(triton_check=ran.stdout.split() or ran.stderr[-500:])
    torch.manual_seed(0)
    for width in (32, 64):
        few, num_codes = (64, 16384) if device.type == "cuda" else (1, 512)
        vectors = torch.randn(2, 729 * few, width)
        codes = torch.randn(2, 1, num_codes, width)
        expected = residual_codes(vectors[:, :729], codes, 8, 1)
        guarded(f"equal_{width}", lambda: _equal(residual_codes, vectors, codes, expected, device))  # noqa: B023
        guarded(f"view_{width}", lambda: _equal(_of_view, vectors, codes, expected, device))  # noqa: B023
        guarded(f"autocast_{width}", lambda: _equal(_autocast, vectors, codes, expected, device))  # noqa: B023
        if device.type == "cuda":
            guarded(f"stream_{width}", lambda: _equal(_on_stream, vectors, codes, expected, device))  # noqa: B023
            guarded(f"graph_{width}", lambda: _equal(_in_graph, vectors, codes, expected, device))  # noqa: B023
    for config in (
        QuantizerConfig(num_codes=512, depth=4, width=16, beam=4),
        SplitQuantizerConfig(kind="split", num_codes=512, depth=4, width=16),
        ScalarQuantizerConfig(kind="scalar", levels=(8, 8, 8), depth=4),
    ):
        quantizer = build_quantizer(config)
        tokens = torch.randn(2, 50, config.width)
        ids = quantizer.encode(tokens)
        guarded(
            config.kind,
            lambda: bool((quantizer.to(device).encode(tokens.to(device)).cpu() == ids).all()),  # noqa: B023
        )


Search = Callable[[Tensor, Tensor, int, int], Tensor]


def _equal(search: Search, vectors: Tensor, codes: Tensor, expected: Tensor, device: torch.device) -> bool:
    found = search(vectors.to(device), codes.to(device), 8, 1)
    return torch.equal(found[:, :729].cpu(), expected)


def _of_view(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:
    padded = torch.cat((vectors[:, :1], vectors), dim=1)
    return residual_codes(padded[:, 1:], codes, depth, beam)


def _autocast(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:
    with torch.autocast(vectors.device.type, torch.bfloat16):
        return residual_codes(vectors, codes, depth, beam)


def _on_stream(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = residual_codes(vectors, codes, depth, beam)
    torch.cuda.current_stream().wait_stream(stream)
    return found


def _in_graph(vectors: Tensor, codes: Tensor, depth: int, beam: int) -> Tensor:
    residual_codes(vectors, codes, depth, beam)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = residual_codes(vectors, codes, depth, beam)
    found.zero_()
    graph.replay()
    return found


def measure_kernel(device: torch.device) -> None:
    """Time the search of 1 to 256 images, and its tiles."""
    torch.manual_seed(0)
    depth, width = 8, 32
    num_codes = 16384 if device.type == "cuda" else 512
    codes = torch.randn(2, 1, num_codes, width, device=device)
    for images in (1, 8, 64, 256) if device.type == "cuda" else (1,):
        vectors = torch.randn(2, 729 * images, width, device=device)
        taken = milliseconds(lambda: residual_codes(vectors, codes, depth, 1), device)  # noqa: B023
        tell(**{f"microseconds_an_image_{images}": round(1000 * taken / images, 1)})
        if device.type == "cuda":
            _measure_rows(vectors, codes, images)
    crowded = 100 + 1e-5 * torch.randn(2, 1, num_codes, width, device=device)
    vectors = 100 + 1e-5 * torch.randn(2, 729, width, device=device)
    taken = milliseconds(lambda: residual_codes(vectors, crowded, depth, 1), device, rounds=1)
    tell(microseconds_of_a_crowded_codebook=round(1000 * taken, 1))


def _measure_rows(vectors: Tensor, codes: Tensor, images: int) -> None:
    """Time the fused kernel with each number of vectors to a program."""
    from dualtoken.model.quantize.triton_kernel import fused_residual_codes  # noqa: PLC0415  (GPUs only)

    sizes: list[Literal[16, 64]] = [16, 64]
    for rows in sizes:
        taken = milliseconds(partial(fused_residual_codes, vectors, codes, 8, rows), vectors.device)
        tell(**{f"microseconds_an_image_{images}_{rows}_rows": round(1000 * taken / images, 1)})


def measure_encoding(device: torch.device) -> None:
    """Time encoding and decoding in each precision, beside the products' rate; compare codes."""
    recipe = recipe_for(device)
    tokenizer = fresh_tokenizer(recipe, device)
    flop = (encoder(recipe.tokenizer) + searches(recipe.tokenizer)).flop
    batches = (16, 64, 128) if device.type == "cuda" else (2,)

    def encode(images: Tensor, precision: Precision) -> Tensor:
        with tower_precision(device, precision):
            return tokenizer.encode(images, check_values=False).semantic

    precisions: list[Precision] = ["bfloat16", "float32"]
    for precision in precisions:
        rate = matmul_rate(precision, device, rounds=3)
        for count in batches:
            images = random_images(recipe, count, device)
            taken = milliseconds(partial(encode, images, precision), device, rounds=3)
            tell(
                **{
                    f"encode_{precision}_{count}": {
                        "images_per_second": round(1000 * count / taken, 2),
                        "share_of_products": round(flop * count / taken / 1e6 / rate, 3),
                    }
                }
            )
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    images = random_images(recipe, batches[0], device)
    taken = milliseconds(lambda: encode(images, "float32"), device, rounds=3)
    tell(encode_tf32_images_per_second=round(1000 * len(images) / taken, 2))
    forbid_tf32()
    codes = tokenizer.encode(images).pixel
    taken = milliseconds(lambda: tokenizer.decode(codes), device, rounds=3)
    tell(decode_float32_images_per_second=round(1000 * len(images) / taken, 2))
    tell(encode_kernels=largest_kernels(lambda: encode(images, "bfloat16"), 5))

    reference = encode(images, "float32")
    tell(twice_the_same=torch.equal(reference, encode(images, "float32")))
    for size in (1, 8):
        parts = torch.cat([encode(part, "float32") for part in images.split(size)])
        tell(**{f"equal_codes_by_depth_batch_{size}": _by_depth(parts, reference)})
    on_cpu = tokenizer.cpu().encode(images[:4].cpu()).semantic
    tell(equal_codes_by_depth_cpu=_by_depth(reference[:4].cpu(), on_cpu))


def _by_depth(found: Tensor, expected: Tensor) -> list[float]:
    shares = (found == expected).double().flatten(0, 2).mean(dim=0)
    return [round(share, 5) for share in shares.tolist()]


STEPS = (
    Step("machine", 45, "driver, versions, whether everything imports, builds at once", describe_machine),
    Step("kernel", 60, "whether the fused kernel gives a CPU's codes", check_kernel),
    Step("kernel_speed", 50, "the fused kernel's speed and tiles", measure_kernel),
    Step("encode", 75, "README's main row; what batch and device change in codes", measure_encoding),
    Step("train", 100, "layouts, cudnn.benchmark, GAN, checkpoints: speed and memory", measure_training),
    Step("mllm", 90, "the unified model of 3B's dimensions: MFU, and seconds a drawing", measure_mllm),
    Step("compile", 70, "what torch.compile gives a step, with and without a GAN", measure_compiled),
    Step("data_parallel", 45, "DistributedDataParallel and collectives on a GPU", measure_data_parallel),
    Step("pretokenize", 60, "whether decoding keeps up; real out-of-memory errors", measure_pretokenize),
    Step("errors", 30, "what a lost context does; whether a CPU's work touches the GPU", check_errors),
    Step("decoder", 30, "phases or direct convolutions, by memory format", measure_decoder),
)
"""Steps in order. Few take all of their time, so its sum is more than the whole call has."""


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[step.name for step in STEPS])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    forbid_tf32()
    started = time.monotonic()
    (step,) = [step for step in STEPS if step.name == arguments.step]
    step.run(torch.device(arguments.device))
    tell(step_seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
