"""Resources that each stage asks of a cluster, and the keys of the recipe that decide them.

Imports no Ray, so that a recipe that no cluster could run is refused at once.
"""

from typing import NamedTuple

from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.config.pretokenize import DECODE_THREADS_PER_GPU
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.run import RunConfig
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.errors import UserError


class Demand(NamedTuple):
    """An amount of one kind of resource, and the keys that ask for it."""

    kind: str
    """CPU or GPU, as Ray calls them."""
    amount: float
    keys: str
    """Keys and values that decide the amount, such as `train.use_gpu=true`."""
    fix: str
    """Advice for a cluster that has less."""


class Resources(NamedTuple):
    """Resources of a stage's workers."""

    cpus: float
    """CPUs of one worker."""
    gpus: float
    """GPUs of one worker, or its share of one."""
    demands: tuple[Demand, Demand]
    """CPUs and GPUs that must be free at once for the stage to begin."""
    group_sizes: tuple[int, ...] = (1,)
    """Numbers of workers that a training group may have: as many start together as there is room for."""
    max_failures: int = 0
    """Restarts of a training group before the stage fails."""


def cpu_worker(_: RunConfig) -> Resources:
    """Return one CPU a worker."""
    return Resources(1, 0, (_ONE_CPU, _inference_gpus(0)))


def inference_worker(recipe: RunConfig) -> Resources:
    """Return one CPU a worker, and the GPU share of `cluster.gpus_per_worker`."""
    gpus = recipe.cluster.gpus_per_worker
    return Resources(1, gpus, (_ONE_CPU, _inference_gpus(gpus)))


def encoding_worker(recipe: Recipe) -> Resources:
    """Return the same with CPUs for the threads that decode images beside a GPU."""
    gpus = recipe.cluster.gpus_per_worker
    cpus = recipe.pretokenize.cpus(gpus)
    cpu = _ONE_CPU
    if cpus > 1:
        keys = f"a worker with a GPU and pretokenize.decode_threads={cpus - 1:g}"
        cpu = Demand("CPU", cpus, keys, "lower it")
    return Resources(cpus, gpus, (cpu, _inference_gpus(gpus)))


def scoring_worker(recipe: Recipe) -> Resources:
    """Return `inference_worker`'s, with CPUs for the threads that decode images for the teacher on a GPU."""
    alone = inference_worker(recipe)
    if not alone.gpus:
        return alone
    cpus = 1 + DECODE_THREADS_PER_GPU
    _, gpu = alone.demands
    cpu = Demand("CPU", cpus, "a worker with a GPU", "add a node with more")
    return Resources(cpus, alone.gpus, (cpu, gpu))


def teacher_training(recipe: Recipe) -> Resources:
    """Return what a teacher's workers need: as many of the tokenizer's as can share its batch, or one."""
    sizes: list[int] = []
    if isinstance(recipe.teacher, TrainedTeacher):
        for size in recipe.train.group_sizes:
            if recipe.teacher.batch_size % size == 0:
                sizes.append(size)
    return _training_group(recipe.train, tuple(sizes) or (1,))


def tokenizer_training(recipe: Recipe) -> Resources:
    """Return what the data-parallel workers of the tokenizer's training need, all of them at once."""
    return _training_group(recipe.train, recipe.train.group_sizes)


def mllm_training(recipe: Recipe) -> Resources:
    """Return what the data-parallel workers of the unified model's training need, all of them at once."""
    assert recipe.mllm is not None, "the stage runs where the recipe has the key"
    return _training_group(recipe.mllm, recipe.mllm.group_sizes, "mllm")


def examining_worker(recipe: Recipe) -> Resources:
    """Return what the unified model's examination needs: the CPUs of a worker that trained it, or a GPU."""
    assert recipe.mllm is not None, "the stage runs where the recipe has the key"
    cpus = recipe.mllm.cpus_per_worker
    keys = f"mllm.cpus_per_worker={cpus:g}"
    gpus = recipe.cluster.gpus_per_worker
    demands = (Demand("CPU", cpus, keys, "lower mllm.cpus_per_worker"), _inference_gpus(gpus))
    return Resources(cpus, gpus, demands)


def _training_group(
    config: TrainConfig | MllmStageConfig, sizes: tuple[int, ...], name: str = "train"
) -> Resources:
    """Return what a group of workers needs that may have several sizes, by the recipe's key of that name."""
    cpus = config.cpus_per_worker
    gpus = float(config.use_gpu)
    cpu = Demand("CPU", cpus, f"{name}.cpus_per_worker={cpus:g}", f"lower {name}.cpus_per_worker")
    gpu = Demand("GPU", gpus, f"{name}.use_gpu=true", f"set {name}.use_gpu=false")
    if config.validate_every and config.validate_in == "task" and name == "train":
        return _with_validation(_group_of(config, sizes, name, cpu, gpu), cpu, gpu)
    return _group_of(config, sizes, name, cpu, gpu)


def _with_validation(group: Resources, cpu: Demand, gpu: Demand) -> Resources:
    """Return what a group needs that has its checkpoints measured beside it, with one worker's resources."""
    more: list[Demand] = []
    for demand, of_one in zip(group.demands, (cpu, gpu), strict=True):
        keys = f"{demand.keys}, and one worker's for train.validate_in=task,"
        fix = f"set train.validate_in=worker, or {demand.fix}"
        more.append(Demand(demand.kind, demand.amount + of_one.amount, keys, fix))
    return group._replace(demands=(more[0], more[1]))


def _group_of(
    config: TrainConfig | MllmStageConfig, sizes: tuple[int, ...], name: str, cpu: Demand, gpu: Demand
) -> Resources:
    cpus = cpu.amount
    gpus = gpu.amount
    if sizes == (1,):
        return Resources(cpus, gpus, (cpu, gpu), sizes, config.max_failures)
    workers = sizes[0]
    key = f"{name}.num_workers" if len(sizes) == 1 else f"{name}.min_workers"
    times = f"{key}={workers} times "
    together = (
        Demand("CPU", workers * cpu.amount, times + cpu.keys, f"lower {key} or {name}.cpus_per_worker"),
        Demand("GPU", workers * gpu.amount, times + gpu.keys, f"lower {key}"),
    )
    return Resources(cpus, gpus, together, sizes, config.max_failures)


_ONE_CPU = Demand("CPU", 1, "a worker", "add a node with one")


def _inference_gpus(gpus: float) -> Demand:
    return Demand("GPU", gpus, f"cluster.gpus_per_worker={gpus:g}", "lower it")


def check_own_cluster(recipe: Recipe) -> None:
    """Raise `UserError` where the cluster that a recipe starts is too small for its training."""
    num_cpus = recipe.cluster.num_cpus
    if recipe.cluster.address != "local" or recipe.cluster.dashboard or num_cpus is None:
        return
    trainings = [tokenizer_training(recipe), teacher_training(recipe)]
    if recipe.mllm is not None:
        trainings.append(mllm_training(recipe))
    for resources in trainings:
        cpu, _ = resources.demands
        if cpu.amount > num_cpus:
            raise UserError(
                f"{cpu.keys} wants {cpu.amount:g} CPUs, cluster.num_cpus={num_cpus}: raise it, or {cpu.fix}"
            )
