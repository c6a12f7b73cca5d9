"""The later steps of `benchmarks.gpu_steps`: training, its compilation and its workers, decoding, errors."""

import io
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from benchmarks.decoder import FORMS
from benchmarks.gpu_report import (
    fresh_tokenizer,
    guarded,
    largest_kernels,
    milliseconds,
    nvidia_smi,
    peak_mb,
    random_images,
    recipe_for,
    tell,
)
from benchmarks.throughput import training_step
from dualtoken.model.config.training import TrainingConfig
from dualtoken.model.precision import tower_precision
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchEncoder
from dualtoken.pipelines.inference.networks import StreamCodes

NO_GAN = "train.gan=null"
CHANNELS_LAST = "train.memory_format=channels_last"
CONTIGUOUS = "train.memory_format=contiguous"
KEPT = "train.checkpoint_tower=false"
LOST = (
    "import torch; from dualtoken.infra.device_errors import is_device_lost as lost\n"
    "try:\n"
    "    torch.zeros(4, device='cuda')[torch.tensor([10**9], device='cuda')]; torch.cuda.synchronize()\n"
    "except RuntimeError as error:\n"
    "    print(type(error).__name__, lost(error))\n"
)
"""Program that loses its GPU, and asks whether it did."""


def measure_training(device: torch.device) -> None:
    """Time a step with each layout, with and without GAN and checkpoints, and name the largest kernels."""
    count = 16 if device.type == "cuda" else 2
    for overrides in (
        (CONTIGUOUS,),
        (CHANNELS_LAST,),
        (CHANNELS_LAST, NO_GAN),
        (CHANNELS_LAST, KEPT),
    ):
        guarded(", ".join(overrides), lambda: _timed_step(device, count, overrides))  # noqa: B023
    torch.backends.cudnn.benchmark = True
    guarded(f"{CHANNELS_LAST}, cudnn.benchmark", lambda: _timed_step(device, count, (CHANNELS_LAST,)))
    torch.backends.cudnn.benchmark = False
    step = _step(recipe_for(device, CHANNELS_LAST), count, device)
    step()
    tell(step_kernels=largest_kernels(step, 20))


def _timed_step(device: torch.device, count: int, overrides: tuple[str, ...]) -> dict[str, float | None]:
    step = _step(recipe_for(device, *overrides), count, device)
    taken = milliseconds(step, device, rounds=3)
    figures = {"milliseconds": taken, "images_per_second": round(1000 * count / taken, 2)}
    return figures | {"peak_mb": peak_mb(step, device)}


def _step(recipe: Recipe, count: int, device: torch.device):  # noqa: ANN202  (a function of nothing)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tokenizer = fresh_tokenizer(recipe, device)
    return training_step(recipe, tokenizer, random_images(recipe, count, device))


def measure_compiled(device: torch.device) -> None:
    """Time compiling a step, and the step that it gives, without a GAN first."""
    count = 8 if device.type == "cuda" else 2
    for overrides in ((NO_GAN,), ()):
        recipe = recipe_for(device, "train.compile=true", KEPT, *overrides)
        step = _step(recipe, count, device)
        started = time.perf_counter()
        guarded(f"compiled {overrides}", step)
        tell(**{f"compile_seconds {overrides}": round(time.perf_counter() - started, 1)})
        guarded(f"milliseconds {overrides}", lambda: milliseconds(step, device, rounds=3))  # noqa: B023


def measure_data_parallel(device: torch.device) -> None:
    """Compare steps in DistributedDataParallel with plain ones; time it, and a collective in float64."""
    recipe = recipe_for(device, NO_GAN)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.NamedTemporaryFile() as meeting:
        dist.init_process_group(backend, init_method=f"file://{meeting.name}", rank=0, world_size=1)
        try:
            numbers = torch.ones(1_000_000, dtype=torch.float64, device=device)
            dist.all_reduce(numbers)
            tell(all_reduce_of_float64=float(numbers.sum()))
            config = recipe.train.model_copy(update={"perceptual": TrainingConfig().perceptual})
            images = random_images(recipe, 4, device)
            targets = _targets(recipe, device)
            plain = TrainState(fresh_tokenizer(recipe, device).train(), config)
            wrapped = TrainState(fresh_tokenizer(recipe, device).train(), config, wrap=_data_parallel)
            losses = [train_step(state, images, targets).loss for state in (plain, wrapped)]
            tell(first_losses=losses)
            for name, state in (("plain", plain), ("ddp", wrapped)):
                tell(**{name: milliseconds(lambda: train_step(state, images, targets), device, 3)})  # noqa: B023
        finally:
            dist.destroy_process_group()


def _data_parallel(tokenizer: DualTokenizer) -> DistributedDataParallel:
    return DistributedDataParallel(tokenizer, forward_sync_buffers=False, gradient_as_bucket_view=True)


def _targets(recipe: Recipe, device: torch.device) -> TeacherTargets:
    config = recipe.tokenizer
    dense = torch.randn(4, config.grid_size**2, config.tower.width, device=device)
    return TeacherTargets(dense.mean(1), dense)


def measure_pretokenize(device: torch.device) -> None:
    """Time decoding by threads beside encoding; let memory run out for real."""
    recipe = recipe_for(device)
    size = recipe.tokenizer.image_size
    tokenizer = fresh_tokenizer(recipe, device)
    noise = torch.randint(0, 256, (8, 48, 48, 3), dtype=torch.uint8).numpy()
    files: list[bytes] = []
    for picture in noise:
        buffer = io.BytesIO()
        Image.fromarray(picture).resize((size, size)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    num_images = 512 if device.type == "cuda" else 32

    def levels(number: int) -> torch.Tensor:
        return tokenizer.transform.levels([Image.open(io.BytesIO(files[number % len(files)]))])

    for threads in (2, 4, 8):
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            decoded = list(pool.map(levels, range(num_images)))
        tell(**{f"decoded_per_second_{threads}": round(num_images / (time.perf_counter() - started))})
    encoder = _Encoder(tokenizer, device)
    batch = torch.cat(decoded[:64])
    whole = encoder.encode_levels(batch)
    if device.type != "cuda":
        return
    used = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(weights + 0.25 * max(used - weights, 0.01))
    adaptive = AdaptiveBatchEncoder(encoder, 64)
    codes = adaptive.encode(batch)
    shares = [float((one == other).mean()) for one, other in zip(codes, whole, strict=True)]
    tell(batch_after_running_out=adaptive.batch_size, equal_codes=shares)


class _Encoder:
    """Encodes levels, as a `TokenizerRunner` does."""

    def __init__(self, tokenizer: DualTokenizer, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device

    def encode_levels(self, levels: torch.Tensor) -> StreamCodes:
        images = self._tokenizer.transform.normalize(levels.to(self._device, non_blocking=True))
        with tower_precision(self._device, "bfloat16"):
            codes = self._tokenizer.encode(images, check_values=False)
        return StreamCodes(codes.semantic.cpu().numpy(), codes.pixel.cpu().numpy())


def check_errors(device: torch.device) -> None:
    """Tell whether CPU work leaves the GPU alone, and what an illegal index does to a process."""
    recipe = recipe_for(torch.device("cpu"))
    config = recipe.train.model_copy(update={"perceptual": TrainingConfig().perceptual})
    state = TrainState(DualTokenizer(recipe.tokenizer), config)
    targets = _targets(recipe, torch.device("cpu"))
    train_step(state, random_images(recipe, 4, torch.device("cpu")), targets)
    tell(cuda_begun_by_a_cpu_step=torch.cuda.is_initialized())
    tell(processes_on_the_card=nvidia_smi("compute-apps=pid,used_memory"))
    if device.type == "cuda":
        lost = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)  # noqa: S603
        tell(lost=lost.stdout.strip(), said=lost.stderr[-300:])


def measure_decoder(device: torch.device) -> None:
    """Time the decoder's doubling by phases and directly, in each precision and memory format."""
    shapes = ((8, 128, 192), (8, 512, 96), (8, 1024, 24)) if device.type == "cuda" else ((1, 16, 32),)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for shape, precision, layout in product(shapes, ("bfloat16", "float32"), formats):
        images, channels, side = shape
        dtype = getattr(torch, precision)
        grid = torch.randn(images, channels, side, side, device=device, dtype=dtype)
        grid = grid.to(memory_format=formats[layout]).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype, requires_grad=True)
        bias = torch.randn(channels, device=device, dtype=dtype, requires_grad=True)
        taken: dict[str, float] = {}
        for name, form in FORMS.items():
            taken[name] = milliseconds(
                lambda: form(grid, weight, bias).float().sum().backward(),  # noqa: B023
                device,
                rounds=3,
            )
        tell(**{f"{shape} {precision} {layout}": taken})
