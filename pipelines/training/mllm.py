"""MLLM stage: the unified model, data-parallel, from packed documents of a run's tokens."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualtoken.infra.storage import Store
from dualtoken.model.config.mllm import NamedTrunk
from dualtoken.model.data_parallel import transformer_blocks
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.lora import ADAPTER_FOLDER, add_adapters, merge_adapters, save_adapter
from dualtoken.model.mllm.losses import MllmBatch, step_size
from dualtoken.model.mllm.saved import save_mllm
from dualtoken.model.mllm.trainer import MllmTrainer, split_batch
from dualtoken.model.optimizer import StepCheck
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.core.sole_run import sole_run
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.loader.batches import PackedBatch
from dualtoken.pipelines.training.checkpoint_saver import load_module
from dualtoken.pipelines.training.engine import raise_if_stopped, train
from dualtoken.pipelines.training.mllm_documents import MllmDocuments
from dualtoken.pipelines.training.mllm_pictures import MllmPictures
from dualtoken.pipelines.training.parallel import data_parallel
from dualtoken.pipelines.training.resume import add_runs_to_card, job_checkpoints
from dualtoken.pipelines.training.state_tensors import OptimizerOf, TrainedParts
from dualtoken.pipelines.training.step_cost import MllmStepCounter, mllm_shape
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import SingleProcessContext, TrainContext

PREFETCHED_BATCHES = 2


def mllm_config(job: StageJob) -> MllmStageConfig:
    """Return the settings of a job of this stage."""
    config = job.recipe.mllm
    assert config is not None, "the stage runs where the recipe has the key"
    return config


class MllmTask:
    """The training of the unified model, as the engine sees it."""

    smaller = "lower mllm.capacity or mllm.batch_size, or take machines with more memory"
    sample_name = "sequences"

    def __init__(self, job: StageJob, context: TrainContext, scratch: Path) -> None:
        config = mllm_config(job)
        self._config = config
        self._context = context
        self._documents = MllmDocuments(job, context)
        model = first_model(job, self._documents, scratch)
        nn.Module.to(model, context.device)
        self._model = model
        self._pictures = MllmPictures(job, context, model, self._documents.text_tokenizer, scratch)

        def wrap(losses: nn.Module) -> nn.Module:
            return data_parallel(losses, context, config.parallel, transformer_blocks(model))

        try:
            self._trainer = MllmTrainer(model, config, wrap)
        except ValueError as error:
            raise UserError(f"mllm: {error}") from None
        if context.rank == 0:
            _say_what_is_trained(job, model)
        self.steps = config.steps
        self.batch_size = config.batch_size
        self.accumulate_steps = config.accumulate_steps
        self._keys: list[str] = []
        self._num_lost = 0
        self._counter = MllmStepCounter(mllm_shape(config, model.config))

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._trainer.step

    @step.setter
    def step(self, step: int) -> None:
        self._trainer.step = step

    @property
    def parts(self) -> TrainedParts:
        """The model, its optimiser, and the loader's place."""
        model = self._trainer.model
        modules: dict[str, nn.Module] = {"model": model, "loader": self._documents.place}
        return TrainedParts(modules, {"optimizer": OptimizerOf(self._trainer.optimizer, model)})

    def batches(self, steps: range) -> Iterable[PackedBatch]:
        """Yield this worker's share of each step's sequences, from where the loaded state stands."""
        batches = self._documents.batches()

        def next_batch(_: int) -> PackedBatch:
            return next(batches)

        return map_ahead(next_batch, steps, threads=1, ahead=PREFETCHED_BATCHES)

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples of the step that was tried last."""
        assert step == self.step
        return self._keys

    def train_step(self, batch: PackedBatch, check: StepCheck) -> Mapping[str, float]:
        """Take the next step."""
        self._keys = [bytes(key.tolist()).hex() for key in batch.keys]
        whole = self._documents.to_model(batch)
        parts = [_on_device(part, self._context.device) for part in split_batch(whole, self.accumulate_steps)]
        # Set before the step, which may be skipped: then the documents are, too.
        self._documents.note(batch)
        self._num_lost += batch.lost
        metrics = self._trainer.train_step(parts, check)
        self._counter.add(step_size(whole))
        return metrics._asdict()

    def step_cost(self) -> StepCost | None:
        """Return the mean operations of this worker's steps since the last call; None if not counted."""
        return self._counter.mean_cost()

    def pictures(self) -> Mapping[str, Tensor]:
        """Return a few held-out images above drawings of their captions, on rank 0."""
        return self._pictures.drawings(self._model)

    def texts(self) -> Mapping[str, str]:
        """Return a few answers about held-out images, on rank 0."""
        return self._pictures.texts(self._model)

    def num_lost(self) -> int:
        """Return how many samples this worker lost to damage so far."""
        return self._num_lost

    def close(self) -> None:
        """Release the datasets."""
        self._documents.close()

    def accumulate_more(self) -> bool:
        """Take a share in the next larger number of parts that divides it."""
        share = self.batch_size // self._context.world_size
        for parts in range(self.accumulate_steps + 1, share + 1):
            if share % parts == 0:
                self.accumulate_steps = parts
                return True
        return False


def _say_what_is_trained(job: StageJob, model: nn.Module) -> None:
    """Count the parameters that are trained, where others stay as they are."""
    total = 0
    trained = 0
    for parameter in model.parameters():
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    if trained < total:
        share = 100 * trained / total
        print(f"{job.label}: trains {trained:,} of {total:,} parameters ({share:.2g} %)", flush=True)


def _on_device(batch: MllmBatch, device: torch.device) -> MllmBatch:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return MllmBatch(
        input_ids=moved(batch.input_ids),
        is_visual=moved(batch.is_visual),
        codes={stream: moved(codes) for stream, codes in batch.codes.items()},
        segments=batch.segments.to(device),
        text_targets=moved(batch.text_targets),
        visual_targets=moved(batch.visual_targets),
        all_depths=moved(batch.all_depths),
        unread=None if batch.unread is None else moved(batch.unread),
    )


def first_model(job: StageJob, documents: MllmDocuments, scratch: Path) -> DualTokenForConditionalGeneration:
    """Return the model that a training begins with: fresh parts, or those of the recipe's folder."""
    config = mllm_config(job)
    vision_folder = job.input("train").local_folder(scratch / "vision tokenizer")
    vision = DualTokenizer.from_pretrained(vision_folder)
    try:
        model = build_mllm(
            config,
            vision,
            documents.tokenizer_sha256,
            documents.text_tokenizer,
            seed=config.seed,
            codes=documents.some_codes(),
        )
        if config.start_from is not None:
            _start_from(model, Store(config.start_from).local_folder(scratch / "start"))
        if config.lora is not None:
            add_adapters(model, config.lora, seed=config.seed)
    except ValueError as error:
        raise UserError(f"mllm: {' '.join(str(error).split())}") from None
    return model


def _start_from(model: DualTokenForConditionalGeneration, folder: Path) -> None:
    """Take a trained model's weights; raises ValueError where its shape or its tokenizer is another."""
    start = DualTokenForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    if start.config.vision_tokenizer != model.config.vision_tokenizer:
        raise ValueError(
            f"start_from has codes of tokenizer {start.config.vision_tokenizer[:12]}, this run of "
            f"{model.config.vision_tokenizer[:12]}: start from a model of the run's own tokenizer"
        )
    try:
        model.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise ValueError(f"start_from has another shape: {' '.join(str(error).split())}") from None


def train_loop(settings: dict[str, Any], context: TrainContext) -> bool:
    """Train the model of a job, which `settings` holds; return whether its last step was taken."""
    return train(settings["job"], context, MllmTask)


def trained_model(job: StageJob, scratch: Path) -> UnitOutput:
    """Write the model of a training's last checkpoint as the output of the stage."""
    checkpoint = job_checkpoints(job).latest(scratch / "last")
    assert checkpoint is not None, "a training ends with a checkpoint"
    context = SingleProcessContext(torch.device("cpu"))
    documents = MllmDocuments(job, context)
    model = first_model(job, documents, scratch / "first")
    load_module(checkpoint, "model", model, scratch / "last")
    lora = mllm_config(job).lora
    if lora is not None:
        save_adapter(model, lora, scratch / ADAPTER_FOLDER, _trunk_name(job))
        merge_adapters(model)
    vision_folder = job.input("train").local_folder(scratch / "first" / "vision tokenizer")
    save_mllm(
        scratch,
        model.eval(),
        documents.text_tokenizer,
        vision_folder,
        trained_on=documents.description(),
        metrics=checkpoint.receipt.metrics,
    )
    documents.close()
    add_runs_to_card(scratch, checkpoint.receipt.runs)
    return UnitOutput(tuple(_written(scratch)), None)


def _trunk_name(job: StageJob) -> str | None:
    """Return the name of the trunk that the adapters belong to; None where it is of another training."""
    config = mllm_config(job)
    if config.start_from is None and isinstance(config.trunk, NamedTrunk):
        return config.trunk.model
    return None


def _written(scratch: Path) -> Iterator[str]:
    """Yield the files of the model's folder, not those that it was made from."""
    for path in sorted(scratch.rglob("*")):
        name = path.relative_to(scratch).as_posix()
        if path.is_file() and not name.startswith(("last/", "first/")):
            yield name


class Worker:
    """Trains in this process; Ray Train runs `loop` in a group of processes."""

    loop = staticmethod(train_loop)
    validate = None
    give_up_validation = None
    output = staticmethod(trained_model)

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the model's folder."""
        assert unit.rows == 0
        num_workers = mllm_config(self._job).num_workers
        if num_workers > 1:
            raise UserError(f"mllm.num_workers={num_workers} in one process: run on Ray, or set it to 1")
        with sole_run(self._job.store()):
            train_loop({"job": self._job}, SingleProcessContext(stage_device(self._job)))
            raise_if_stopped()
            return trained_model(self._job, scratch)
