"""The networks as stages use them: pictures in, numpy out; opened from an earlier stage's folder, once per process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.precision import Precision, forbid_tf32, tower_precision
from dualtoken.model.teacher.teacher import Teacher, load_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError

Array = np.ndarray[Any, Any]


def best_device() -> torch.device:
    """Return a GPU where there is one, else the CPU: for what is looked at or compared, not stored."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stage_device(job: StageJob) -> torch.device:
    """Return the device that the recipe gives a stage, whatever else this machine has: a GPU has other last bits.

    Raises `UserError` for a GPU that this process does not have.
    """
    if not job.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"{job.label}: {job.gpu_setting} asks for a GPU, and PyTorch finds none here: run where there is one, or change it"
        )
    return torch.device("cuda")


def describe_device(device: torch.device) -> dict[str, str]:
    """Return what may round in its own way, for a receipt: the GPU's or the CPU's kind, and PyTorch's version."""
    cuda = device.type == "cuda"
    name = (
        torch.cuda.get_device_name(device)
        if cuda
        else f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    )
    return {"device": name, "torch": str(torch.__version__)}


def set_num_threads(count: int) -> None:
    """Fix the number of CPU threads: sums in another order differ in the last bit, and stored bytes must not."""
    torch.set_num_threads(count)


class StreamCodes(NamedTuple):
    """Codes of images, uint16, (B, H, W, D)."""

    semantic: Array
    pixel: Array


class TeacherRunner:
    """A teacher that looks at pictures."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._teacher: Teacher = load_teacher(folder, device)
        self._device = device
        self.embedding_width = int(self._teacher.embed_texts([""]).shape[1])

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit embeddings of pictures, (B, E)."""
        return self._teacher.embed_images(self._levels(pictures))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return unit embeddings of captions, (B, E)."""
        return self._teacher.embed_texts(captions)

    def project(self, pooled: Tensor) -> Tensor:
        """Return the unit embeddings that pooled outputs (B, W) stand for, (B, E)."""
        return self._teacher.project(pooled)

    def similarities(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Return the cosine of each picture with its caption."""
        return (self.images(pictures) * self.texts(captions)).sum(dim=1).tolist()

    def targets(
        self, pictures: Sequence[Image.Image], captions: Sequence[str], block: int
    ) -> dict[str, Array]:
        """Return what the targets stage stores of each picture; `block` is the tokenizer's semantic one."""
        said, texts = self._teacher.embed_all(self._levels(pictures), block), self.texts(captions)
        values = {
            "similarity": (said.embeddings * texts).sum(dim=1),
            "image_embedding": said.embeddings,
            "text_embedding": texts,
            "pooled": said.pooled,
            "dense": said.dense,
        }
        return {name: value.float().cpu().numpy() for name, value in values.items()}

    def _levels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return to_tensor(pictures, self._teacher.image_size).to(self._device)


class TokenizerRunner:
    """A trained tokenizer that looks at pictures; `precision` is that of encoding, less the code search, which is always float32."""

    def __init__(self, folder: Path, device: torch.device, precision: Precision = "float32") -> None:
        forbid_tf32()
        self.network = DualTokenizer.from_pretrained(folder, device)
        self.device = device
        self.precision: Precision = precision

    @property
    def config(self) -> TokenizerConfig:
        """Its shape."""
        return self.network.config

    def encode(self, pictures: Sequence[Image.Image]) -> StreamCodes:
        """Return the codes of pictures."""
        return self.encode_levels(self.network.transform.levels(pictures))

    def encode_levels(self, levels: Tensor) -> StreamCodes:
        """Return the codes of pictures as the network sees them, uint8 (B, 3, S, S), of any device; only codes come back."""
        levels = levels.to(self.device, non_blocking=True)
        with tower_precision(self.device, self.precision):
            codes = self.network.encode(self.network.transform.normalize(levels))
        return StreamCodes(*(stream.to(torch.uint16).cpu().numpy() for stream in codes))

    def decode(self, pixel: Array) -> Tensor:
        """Return the images that pixel codes (B, H, W, D) say, as uint8 levels (B, 3, S, S)."""
        return self.network.transform.to_uint8(
            self.network.decode(torch.from_numpy(pixel.astype(np.int64)).to(self.device))
        )

    def embed(self, semantic: Array) -> Tensor:
        """Return the pooled features that semantic codes (B, H, W, D) say, (B, W)."""
        return self.network.semantic_features(
            torch.from_numpy(semantic.astype(np.int64)).to(self.device)
        ).pooled

    def levels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return pictures as the network sees them, uint8 (B, 3, S, S)."""
        return self.network.transform.levels(pictures).to(self.device)


def open_teacher(job: StageJob) -> TeacherRunner:
    """Open the teacher that a job reads, on one thread."""
    set_num_threads(1)
    with scratch_folder() as scratch:
        return TeacherRunner(job.input("teacher").local_folder(Path(scratch)), stage_device(job))


def open_tokenizer(job: StageJob, device: torch.device | None = None) -> TokenizerRunner:
    """Open the tokenizer that a job reads, on the device given or else the stage's, to encode as its recipe pretokenizes."""
    set_num_threads(1)
    with scratch_folder() as scratch:
        return TokenizerRunner(
            job.input("train").local_folder(Path(scratch)),
            device or stage_device(job),
            job.recipe.pretokenize.precision,
        )
