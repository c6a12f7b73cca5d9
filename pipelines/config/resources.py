"""What the stages ask of a cluster, and by which keys; imports no ray, so that what a recipe cannot mean is told at once."""

from typing import NamedTuple

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError

ON_GPU = frozenset({"score", "targets", "pretokenize", "report"})
"""Stages that `cluster.gpus_per_worker` is for."""


class Demand(NamedTuple):
    """So much of one kind, and the keys that ask for it."""

    kind: str
    """CPU or GPU, as Ray calls them."""
    amount: float
    keys: str
    fix: str


def per_worker(recipe: Recipe, stage: str) -> tuple[float, float]:
    """Return the CPUs and GPUs that one worker of a stage needs."""
    if stage in {"train", "teacher"}:
        return recipe.train.cpus_per_worker, float(recipe.train.use_gpu)
    gpus = recipe.cluster.gpus_per_worker if stage in ON_GPU else 0
    return recipe.pretokenize.cpus(gpus) if stage == "pretokenize" else 1, gpus


def demands(recipe: Recipe, stage: str) -> tuple[Demand, Demand]:
    """Return what must be there at once for a stage to begin: all workers of a training, one of any other stage."""
    cpus, gpus = per_worker(recipe, stage)
    if stage not in {"train", "teacher"}:
        cpu = Demand("CPU", cpus, "a worker", "add a node with one")
        if cpus > 1:
            cpu = Demand(
                "CPU", cpus, f"a worker with a GPU and pretokenize.decode_threads={cpus - 1:g}", "lower it"
            )
        return cpu, Demand("GPU", gpus, f"cluster.gpus_per_worker={gpus:g}", "lower it")
    together = recipe.train.num_workers if stage == "train" else 1
    times, lower = (
        (f"train.num_workers={together} times ", "train.num_workers or ") if together > 1 else ("", "")
    )
    return (
        Demand(
            "CPU",
            together * cpus,
            f"{times}train.cpus_per_worker={cpus:g}",
            f"lower {lower}train.cpus_per_worker",
        ),
        Demand(
            "GPU",
            together * gpus,
            f"{times}train.use_gpu=true",
            "lower train.num_workers" if together > 1 else "set train.use_gpu=false",
        ),
    )


def check_own_cluster(recipe: Recipe) -> None:
    """Raise `UserError` where the cluster that a recipe starts is too small for its training."""
    there = recipe.cluster.num_cpus
    if recipe.cluster.address != "local" or recipe.cluster.dashboard or there is None:
        return
    for stage in ("train", "teacher"):
        cpus, _ = demands(recipe, stage)
        if cpus.amount > there:
            raise UserError(
                f"{cpus.keys} wants {cpus.amount:g} CPUs, cluster.num_cpus={there}: raise it, or {cpus.fix}"
            )
