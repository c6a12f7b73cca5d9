"""A small task for the engine's tests: a linear layer that learns numbers, in no time."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dualtoken.model.config.optimizer import AdamWConfig
from dualtoken.model.optimizer import StepCheck, build_optimizer
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.parallel import data_parallel
from dualtoken.pipelines.training.state_tensors import OptimizerOf, TrainedParts
from dualtoken.pipelines.training.task import Sum
from dualtoken.pipelines.training.train_context import TrainContext

NUM_SAMPLES = 12


class ToyTask:
    """Learns to map 4 numbers to 3; subclasses make steps fail."""

    smaller = "lower the toy"
    sample_name = "images"

    def __init__(self, job: StageJob, context: TrainContext, _scratch: Path) -> None:
        self.job = job
        self.context = context
        self.step = 0
        self.steps = job.recipe.train.steps
        self.batch_size = NUM_SAMPLES
        self.accumulate_steps = 1
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.wrapped = data_parallel(self.model, context, job.recipe.train.parallel)
        self.optimizer = build_optimizer(
            self.model, AdamWConfig(kind="adamw"), learning_rate=0.1, betas=(0.9, 0.9), weight_decay=0.0
        )

    @property
    def parts(self) -> TrainedParts:
        return TrainedParts({"model": self.model}, {"optimizer": OptimizerOf(self.optimizer, self.model)})

    def batches(self, steps: range) -> Iterable[Tensor]:
        share = NUM_SAMPLES // self.context.world_size
        first = self.context.rank * share
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            yield torch.randn(NUM_SAMPLES, 4, generator=generator)[first : first + share]

    def sample_keys(self, step: int) -> list[str]:
        return [f"sample {step}"]

    def train_step(self, batch: Tensor, check: StepCheck) -> Mapping[str, float]:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        problem = ""
        if not torch.isfinite(loss):
            problem = f"step {self.step} has loss {loss.item()}: lower train.learning_rate"
        check(norm, problem)
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item()}

    def loss(self, batch: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return (self.wrapped(batch) - batch[:, :3]).square().mean()

    def close(self) -> None:
        pass

    def accumulate_more(self) -> bool:
        if self.accumulate_steps == 4:
            return False
        self.accumulate_steps *= 2
        return True


class NotANumber(ToyTask):
    """Its loss is not a number in steps 2 and 3."""

    bad = (2, 3)

    def loss(self, batch: Tensor) -> Tensor:
        loss = super().loss(batch)
        return loss * float("nan") if self.step in self.bad else loss


class NotANumberOfFirst(ToyTask):
    """The first worker's loss is infinite in step 2, and its gradient is finite."""

    def loss(self, batch: Tensor) -> Tensor:
        loss = super().loss(batch)
        if self.step == 2 and self.context.rank == 0:
            loss = loss + torch.tensor(float("inf"))
        return loss


class Spike(ToyTask):
    """Its loss is a thousand times as large in step 30."""

    def loss(self, batch: Tensor) -> Tensor:
        return super().loss(batch) * (1000 if self.step == 30 else 1)


class TooLarge(ToyTask):
    """Runs out of memory in step 2, unless a batch is taken in `needed_parts`."""

    needed_parts = 4
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")

    def loss(self, batch: Tensor) -> Tensor:
        if self.step == 2 and self.accumulate_steps < self.needed_parts:
            raise self.error
        return super().loss(batch)


class NoRoomForHandle(TooLarge):
    """Runs out of memory in step 2, as cuBLAS says it."""

    error = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")


class FarTooLarge(TooLarge):
    """Runs out of memory in step 2, however a batch is taken."""

    needed_parts = 8


class Hangs(ToyTask):
    """Hangs in step 2."""

    def loss(self, batch: Tensor) -> Tensor:
        while self.step == 2:
            time.sleep(0.1)
        return super().loss(batch)


class Slow(ToyTask):
    """Takes its time for each step."""

    def loss(self, batch: Tensor) -> Tensor:
        time.sleep(0.1)
        return super().loss(batch)


class SlowData(ToyTask):
    """Waits for each batch; each worker lost one sample more than the one before it, and has its own code."""

    def batches(self, steps: range) -> Iterable[Tensor]:
        for batch in super().batches(steps):
            time.sleep(0.05)
            yield batch

    def num_lost(self) -> int:
        """Return what this worker lost."""
        return self.context.rank + 1

    def code_counts(self) -> Mapping[str, Tensor]:
        """Return the codes of this worker: it has met the one of its own rank."""
        return {"toy": torch.eye(4, dtype=torch.int64)[self.context.rank : self.context.rank + 1]}


class Validated(ToyTask):
    """Measures how far its weights are from the best ones on twelve further samples."""

    def validate(self) -> Mapping[str, Sum]:
        """Measure this worker's share."""
        samples = torch.randn(NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(99))
        share = samples[self.context.rank :: self.context.world_size]
        errors = (self.model(share) - share[:, :3]).square().mean(dim=1)
        return {"error": Sum(errors.sum().item(), len(errors))}
