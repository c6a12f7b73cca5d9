"""Saves a training's checkpoints beside its steps, and loads them, by torch.distributed.checkpoint.

A step waits only for the copy of the tensors into memory of their own. The rest is done by a thread: each
worker writes its part of the tensors to local scratch, as safetensors, and stores its files; then rank 0
declares the checkpoint whole. Nothing in a checkpoint is pickled. Ray Train's own upload is not used: Ray
would keep its own list of checkpoints in one file, and a run whose list is cut could never go on.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import (
    _load_state_dict,  # pyright: ignore[reportPrivateUsage]  # the public one warns where there is no group
)
from torch.distributed.checkpoint.state_dict_saver import (
    _save_state_dict,  # pyright: ignore[reportPrivateUsage]  # likewise
)

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.engine import EngineConfig
from dualtoken.pipelines.core.commit import upload
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.core.threads import BackgroundThread
from dualtoken.pipelines.errors import ExitCode, exit_code
from dualtoken.pipelines.training.checkpoints import Checkpoint, CheckpointReceipt, Checkpoints
from dualtoken.pipelines.training.state_tensors import (
    SavedTensor,
    TrainedParts,
    allocate_optimizer_state,
    module_tensors,
    state_tensors,
)
from dualtoken.pipelines.training.train_context import TrainContext
from dualtoken.pipelines.training.worker_group import WorkerGroup

BYTES_PER_FILE = 2**30
"""Size from which a worker begins another file; it holds one in memory while it writes."""
RETRY_SECONDS = 1.0
"""Wait after the first attempt to store a file; each further one waits twice as long."""


class CheckpointSaver:
    """Saves the checkpoints of one run, one at a time, in a thread of its own."""

    def __init__(self, checkpoints: Checkpoints, context: TrainContext, config: EngineConfig) -> None:
        self._checkpoints = checkpoints
        # Of its own: its messages must not meet those of the steps.
        self._workers = WorkerGroup(context, config.collective_timeout_seconds)
        self._attempts = config.max_upload_attempts
        self._thread = BackgroundThread(threaded=True)
        has_gpu = context.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=has_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=has_gpu,
            )
        )
        self.whole_step = -1
        """Step of the last checkpoint of this run that is whole."""
        self.stalled_seconds = 0.0
        """Time that steps have waited for checkpoints."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the last checkpoint is whole; after an error of the block, drop it."""
        try:
            self._thread.__exit__(kind, error, trace)
        finally:
            self._stager.close()

    def save(self, parts: TrainedParts, receipt: CheckpointReceipt) -> None:
        """Copy a training's tensors and begin to save them; `receipt` lacks the files.

        Waits for the checkpoint before, and raises its error.
        """
        started = time.monotonic()
        self._thread.finish()
        # The copies of the last checkpoint are written over.
        staged = self._stager.stage(state_tensors(parts))
        assert isinstance(staged, dict)
        self._thread.submit(partial(self._write, staged, receipt))
        self.stalled_seconds += time.monotonic() - started

    def finish(self) -> None:
        """Wait until the last checkpoint is whole; raises its error."""
        self._thread.finish()

    def _write(self, tensors: dict[str, Any], receipt: CheckpointReceipt) -> None:
        # On rank 0, before any worker stores a file of this attempt.
        self._workers.of_first(partial(self._begin, receipt.step))
        with scratch_folder() as name:
            _write_tensors(tensors, Path(name), self._workers)
            store = self._checkpoints.folder(receipt.step)
            uploads = self._workers.all(partial(_upload_all, store, Path(name), self._attempts))
        files = [file for of_one in uploads for file in of_one]
        whole = receipt.model_copy(update={"files": tuple(files)})
        self._workers.of_first(partial(self._checkpoints.commit, whole))
        self.whole_step = receipt.step

    def _begin(self, step: int) -> None:
        self._checkpoints.begin(step)


def _write_tensors(tensors: Mapping[str, Tensor], folder: Path, workers: WorkerGroup) -> None:
    """Write this worker's part of the tensors; of those that all have, each worker writes some."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_numbers(contiguous), save_distributed=True
    )
    _save_state_dict(contiguous, writer, process_group=workers.group, no_dist=workers.group is None)


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of each tensor's file, from 1 on: no file much over `BYTES_PER_FILE`."""
    numbers: dict[str, int] = {}
    number = 1
    num_bytes = 0
    for name, tensor in tensors.items():
        if num_bytes >= BYTES_PER_FILE:
            number += 1
            num_bytes = 0
        numbers[name] = number
        num_bytes += tensor.numel() * tensor.element_size()
    return numbers


def _upload_all(store: Store, folder: Path, attempts: int) -> list[FileRecord]:
    return [_upload(store, folder, path.name, attempts) for path in sorted(folder.iterdir())]


def _upload(store: Store, folder: Path, name: str, attempts: int) -> FileRecord:
    """Store a file, after failures again; raises the error of the last attempt."""
    wait = RETRY_SECONDS
    for _ in range(attempts - 1):
        try:
            return upload(store, folder, name)
        except Exception as error:
            if exit_code(error) != ExitCode.TEMPORARY:
                raise
            print(f"checkpoint {store.url}: {name} was not stored ({error}): trying again", flush=True)
            time.sleep(wait)
            wait *= 2
    return upload(store, folder, name)


def load_checkpoint(checkpoint: Checkpoint, parts: TrainedParts, scratch: Path) -> None:
    """Load a checkpoint into the live tensors of a training, whatever number of workers saved it."""
    folder = checkpoint.local_folder(scratch)
    allocate_optimizer_state(parts, _saved_tensors(folder))
    _load_tensors(folder, state_tensors(parts))


def load_module(checkpoint: Checkpoint, name: str, module: nn.Module, scratch: Path) -> None:
    """Load one module of a checkpoint by its name, such as `model`, and nothing else."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in module_tensors(module).items():
        tensors[f"{name}.{key}"] = tensor
    _load_tensors(checkpoint.local_folder(scratch), tensors)


def _load_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Load tensors of a checkpoint by name, in place: one at a time passes through memory of the CPU."""
    _load_state_dict(tensors, HuggingFaceStorageReader(str(folder)), no_dist=True)


def _saved_tensors(folder: Path) -> dict[str, SavedTensor]:
    """Return the shapes and types of a checkpoint's tensors, by name."""
    saved: dict[str, SavedTensor] = {}
    for name, found in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
        assert isinstance(found, TensorStorageMetadata)
        saved[name] = SavedTensor(found.size, found.properties.dtype)
    return saved
