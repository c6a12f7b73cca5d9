"""Runs trained networks on a device: pictures in, numpy out.

A stage opens its networks from an earlier stage's folder, once per process. Shapes: B pictures of S by S
pixels, H by W grid cells of D codes each; embeddings are E wide, a tower's outputs W.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dualtoken.infra.nvidia_driver import driver_version
from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.precision import Precision, forbid_tf32, kept_float32_precision, tower_precision
from dualtoken.model.teacher.teacher import Teacher, load_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.pretokenize import DECODE_THREADS_PER_GPU
from dualtoken.pipelines.core.lent_process import put_back_later
from dualtoken.pipelines.core.stage import AnyJob, StageJob
from dualtoken.pipelines.errors import UserError

Array = np.ndarray[Any, Any]

_SHARE_IN_USE = 0.95
"""Part of a worker's share of a GPU's memory that PyTorch may take; CUDA's own context takes the rest."""
_LEAST_DRIVERS = {"12": "525", "13": "580"}
"""Least driver by CUDA's major version (CUDA Toolkit Release Notes, table 2, minor version compatibility)."""


def prepare_process(*, threads: int | None) -> None:
    """Set how PyTorch computes in this whole process, so that the bytes it stores repeat.

    Both settings outlive the call and reach every network of the process. So whoever owns the process calls
    this before it opens one: a stage's worker, or a command. No network does so by itself. A process that is
    lent (`lent_process`) has its own settings back afterwards.

    `threads` is the number of CPU threads; None leaves PyTorch's own. TF32 is forbidden on a GPU.
    """
    if threads is not None:
        put_back_later(partial(set_num_threads, torch.get_num_threads()))
        set_num_threads(threads)
    put_back_later(kept_float32_precision())
    forbid_tf32()


def set_num_threads(count: int) -> None:
    """Fix the process's CPU threads: the order of sums changes last bits, and stored bytes must repeat."""
    torch.set_num_threads(count)


def best_device() -> torch.device:
    """Return a GPU where there is one, else the CPU: for what is looked at or compared, not stored."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def stage_device(job: AnyJob) -> torch.device:
    """Return the device that the recipe gives a stage, whatever else this machine has.

    A GPU's results differ in the last bits; TF32 is forbidden in this process, so that no stage's bytes
    depend on which ran before it. Raises `UserError` for a GPU that this process does not have.
    """
    if not job.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"{job.label}: {job.gpu_setting} asks for a GPU, and PyTorch finds none here: "
            f"{_how_to_find_gpus(torch.version.cuda, driver_version())}"
        )
    forbid_tf32()
    if job.gpus < 1:
        # Whether a batch fits, and so its size and the last bits, would else depend on the other processes.
        torch.cuda.set_per_process_memory_fraction(job.gpus * _SHARE_IN_USE)
    return torch.device("cuda")


def _how_to_find_gpus(cuda: str | None, driver: str | None) -> str:
    """Say what to do where PyTorch, made for that version of CUDA, finds no GPU beside that driver."""
    if driver is None:
        return "run where there is one, or change it"
    if cuda is None:
        return f"this PyTorch is for CPUs, and the machine has NVIDIA's driver {driver}: install one for CUDA"
    least = _LEAST_DRIVERS.get(cuda.partition(".")[0], "newer")
    return f"this PyTorch is for CUDA {cuda}, which needs driver {least} or later, and here is {driver}"


class DeviceDescription(NamedTuple):
    """What decides rounding, for a receipt."""

    device: str
    """Kind of GPU or CPU."""
    torch: str
    """Version of PyTorch."""
    cudnn: str | None = None
    """Version of cuDNN; None for a CPU."""
    driver: str | None = None
    """Version of the GPU's driver likewise."""

    def present(self) -> dict[str, str]:
        """Return the facts that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def describe_device(device: torch.device) -> DeviceDescription:
    """Return what decides how a device rounds."""
    version = str(torch.__version__)
    if device.type != "cuda":
        return DeviceDescription(f"{device.type} {torch.backends.cpu.get_cpu_capability()}", version)
    return DeviceDescription(
        torch.cuda.get_device_name(device),
        version,
        cudnn=str(torch.backends.cudnn.version()),
        driver=driver_version() or "unknown",
    )


def is_cpu(name: str | None) -> bool:
    """Tell whether a device of `describe_device` is a CPU; where none is named, none but a CPU could be."""
    return name is None or name.startswith("cpu ")


def likest_device(name: str | None) -> torch.device:
    """Return this machine's device that is likest to one of `describe_device`: a CPU for a CPU."""
    return torch.device("cpu") if is_cpu(name) else best_device()


class StreamCodes(NamedTuple):
    """Codes of images, uint16, (B, H, W, D)."""

    semantic: Array
    pixel: Array


class TeacherRunner:
    """A teacher on a device; `precision` is that of its image tower."""

    def __init__(self, folder: Path, device: torch.device, precision: Precision = "float32") -> None:
        self._teacher: Teacher = load_teacher(folder, device)
        self._precision: Precision = precision
        self.device = device
        self.embedding_width = int(self._teacher.embed_texts([""]).shape[1])

    def levels(self, pictures: Sequence[Image.Image]) -> UInt8[Tensor, "B 3 S S"]:
        """Return pictures as the teacher sees them, on the CPU."""
        return to_tensor(pictures, self._teacher.image_size)

    def images(self, levels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """Return unit embeddings of pictures."""
        with tower_precision(self.device, self._precision):
            embeddings = self._teacher.embed_images(levels.to(self.device))
        return F.normalize(embeddings.float(), dim=-1) if self._precision != "float32" else embeddings

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "B E"]:
        """Return unit embeddings of captions."""
        return self._teacher.embed_texts(captions)

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """Return the unit embeddings of a tower's pooled outputs."""
        return self._teacher.project(pooled)

    def similarities(self, levels: UInt8[Tensor, "B 3 S S"], captions: Sequence[str]) -> list[float]:
        """Return the cosine of each picture with its caption."""
        cosines = (self.images(levels) * self.texts(captions)).sum(dim=1)
        return cosines.tolist()

    def targets(
        self, levels: UInt8[Tensor, "B 3 S S"], captions: Sequence[str], block: int
    ) -> dict[str, Array]:
        """Return the columns that the targets stage stores; `block` is the tokenizer's semantic one."""
        with tower_precision(self.device, self._precision):
            outputs = self._teacher.embed_all(levels.to(self.device), block)
        texts = self.texts(captions)
        columns = {
            "similarity": (outputs.embeddings * texts).sum(dim=1),
            "image_embedding": outputs.embeddings,
            "text_embedding": texts,
            "pooled": outputs.pooled,
            "dense": outputs.dense,
        }
        return {name: values.float().cpu().numpy() for name, values in columns.items()}


class TokenizerRunner:
    """A trained tokenizer on a device, for stages and for commands on image files.

    `precision` is that of encoding; the code search is in float32 always.
    """

    def __init__(self, folder: Path, device: torch.device, precision: Precision = "float32") -> None:
        self.network = DualTokenizer.from_pretrained(folder, device)
        self.folder = folder
        """Folder that the weights were read from; gone by now where it was a copy in a stage's scratch."""
        self.device = device
        self.precision: Precision = precision

    @property
    def config(self) -> TokenizerConfig:
        """The network's shape."""
        return self.network.config

    def encode(self, pictures: Sequence[Image.Image]) -> StreamCodes:
        """Return the codes of pictures."""
        return self.encode_levels(self.network.transform.levels(pictures))

    def encode_levels(self, levels: UInt8[Tensor, "B 3 S S"]) -> StreamCodes:
        """Return the codes, on the CPU, of pictures as the network sees them, on any device."""
        levels = levels.to(self.device, non_blocking=True)
        with tower_precision(self.device, self.precision):
            codes = self.network.encode(self.network.transform.normalize(levels), check_values=False)
        return StreamCodes(semantic=_to_uint16(codes.semantic), pixel=_to_uint16(codes.pixel))

    def decode(self, pixel: Array) -> UInt8[Tensor, "B 3 S S"]:
        """Return the images that pixel codes (B, H, W, D) stand for."""
        return self.network.transform.to_uint8(self.network.decode(self._ids(pixel)))

    def decode_truncated(self, pixel: Array) -> UInt8[Tensor, "B 3 S S"]:
        """Return the same by a cast that drops fractions, as the released code's evaluation does."""
        levels = self.network.transform.to_levels(self.network.decode(self._ids(pixel)))
        return levels.clamp(0, 255).to(torch.uint8)

    def embed(self, semantic: Array) -> Float[Tensor, "B W"]:
        """Return the pooled features that semantic codes (B, H, W, D) stand for."""
        return self.network.semantic_features(self._ids(semantic)).pooled

    def levels(self, pictures: Sequence[Image.Image]) -> UInt8[Tensor, "B 3 S S"]:
        """Return pictures as the network sees them."""
        return self.network.transform.levels(pictures).to(self.device)

    def _ids(self, codes: Array) -> Tensor:
        return torch.from_numpy(codes.astype(np.int64)).to(self.device)


def _to_uint16(ids: Tensor) -> Array:
    return ids.to(torch.uint16).cpu().numpy()


def open_teacher(job: StageJob, precision: Precision = "float32") -> TeacherRunner:
    """Open the teacher that a job reads, on the stage's device; the caller has prepared the process."""
    device = stage_device(job)
    with scratch_folder() as scratch:
        return TeacherRunner(job.input("teacher").local_folder(Path(scratch)), device, precision)


def threads_beside(device: torch.device) -> int:
    """Return the threads that decode images beside a device: none beside a CPU, which is busy as it is."""
    return DECODE_THREADS_PER_GPU if device.type == "cuda" else 0


def open_tokenizer(job: StageJob, device: torch.device | None = None) -> TokenizerRunner:
    """Open the tokenizer that a job reads, to encode as its recipe pretokenizes.

    It runs on the device given, or else on the stage's; the caller has prepared the process.
    """
    with scratch_folder() as scratch:
        folder = job.input("train").local_folder(Path(scratch))
        return TokenizerRunner(folder, device or stage_device(job), job.recipe.pretokenize.precision)
