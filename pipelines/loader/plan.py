"""Load plan: what a training run reads, and in which order.

Sample n of a run is a pure function of (datasets, seed, n): the mixture says which dataset it is from, a
permutation which row. Loaders differ in how they cut this one sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dualtoken.pipelines.loader.mixture import Mixture, mixture_of_epochs, scheduled_mixture
from dualtoken.pipelines.tokens.reader import TokenDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Plan of a training run's input: its datasets, their mixture and their order."""

    datasets: tuple[TokenDataset, ...]
    tokenizer: str | None = None
    """Tokenizer whose codes the model reads: the SHA-256 of its `model.safetensors`, or the fingerprint of
    its training.

    Tokens of another one are refused.
    """
    weights: Mapping[int, Sequence[float]] | None = None
    """Shares by first sample, such as {0: [3, 1], 1_000_000: [1, 1]}: an endless run."""
    epochs: tuple[float, ...] | None = None
    """Passes over each dataset, such as (1, 2.5), evenly over a run that ends with them; by default one."""
    seed: int = 0
    shuffle: bool = True
    shuffle_shards: int | None = None
    """Window of the shuffle, in shards: rows are shuffled among so many at a time, which come in a seeded
    order.

    Datasets that are read from afar, or for the first time, are then fetched a few shards at a time. By
    default rows of all shards are shuffled, so that each batch touches about as many shards as it has rows.
    """
    heldout_fraction: float = 0.0
    """Fraction of each dataset, by the samples' keys (`core.ledger.key_fraction`), that is never yielded.

    Its samples keep their numbers in the run.
    """
    with_captions: bool = False
    on_damage: Literal["raise", "quarantine"] = "raise"
    """Reaction to a damaged shard, once it was fetched again where it is remote: `raise` ends the run,
    `quarantine` leaves the shard out and writes it into `damage_ledger`."""
    damage_ledger: Path | None = None
    """File of JSON lines, one for all ranks, with dataset, shard, file, rows lost and reason.

    Shards that it names when a loader is made are left out from the start.
    """

    def __post_init__(self) -> None:
        self._require_one_tokenizer()
        self._require_usable_shares()
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction={self.heldout_fraction}: give a fraction from 0, below 1")
        for dataset in self.datasets:
            if not len(dataset):
                raise ValueError(f"{dataset.url} has no rows: leave it out")
        if self.shuffle_shards is not None and (self.shuffle_shards < 1 or not self.shuffle):
            raise ValueError(
                f"shuffle_shards={self.shuffle_shards}, shuffle={self.shuffle}: "
                "give at least 1 shard, and shuffle"
            )
        if self.on_damage == "quarantine" and self.damage_ledger is None:
            raise ValueError(
                "on_damage=quarantine without damage_ledger: name a file to write lost shards into"
            )

    def _require_one_tokenizer(self) -> None:
        if self.tokenizer is not None:
            for dataset in self.datasets:
                dataset.require_tokenizer(self.tokenizer)
        first, *others = self.datasets
        for other in others:
            if other.tokenizer_sha256 != first.tokenizer_sha256:
                raise ValueError(
                    f"{first.url} has tokens of tokenizer {first.tokenizer_fingerprint}, "
                    f"{other.url} of {other.tokenizer_fingerprint}: "
                    "a mixture has one tokenizer; pretokenize one of them again"
                )
            if other.streams != first.streams:
                raise ValueError(
                    f"{first.url} is read for {first.streams}, {other.url} for {other.streams}: "
                    "open them alike"
                )

    def _require_usable_shares(self) -> None:
        if self.weights is not None and self.epochs is not None:
            raise ValueError(
                "weights and epochs are both given: weights make an endless run, epochs a finite one"
            )
        if self.epochs is not None:
            self._require_one_per_dataset("epochs", self.epochs)
        if self.weights is not None:
            for weights in self.weights.values():
                self._require_one_per_dataset("weights", weights)

    def _require_one_per_dataset(self, name: str, values: Sequence[float]) -> None:
        if len(values) != len(self.datasets):
            raise ValueError(f"{name}={list(values)} for {len(self.datasets)} datasets: give one each")

    def mixture(self) -> Mixture:
        """Return which dataset each sample is from."""
        if self.weights is not None:
            return scheduled_mixture(self.weights, self.seed)
        epochs = self.epochs or (1.0,) * len(self.datasets)
        samples_per_dataset: list[int] = []
        for dataset, passes in zip(self.datasets, epochs, strict=True):
            samples_per_dataset.append(int(len(dataset) * passes))
        return mixture_of_epochs(samples_per_dataset, self.seed)

    def identity(self) -> dict[str, Any]:
        """Return what decides which sample has which index, as JSON values."""
        weights = None
        if self.weights:
            weights = {str(first_sample): list(shares) for first_sample, shares in self.weights.items()}
        identity = {
            "datasets": [dataset.fingerprint for dataset in self.datasets],
            "weights": weights,
            "epochs": list(self.epochs) if self.epochs else None,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "shuffle_shards": self.shuffle_shards,
        }
        if self.heldout_fraction:
            identity["heldout_fraction"] = self.heldout_fraction
        return identity


def require_same_plan(state: Mapping[str, Any], version: int, identity: Mapping[str, Any]) -> None:
    """Raise ValueError unless a loader's state is of this version, and of a plan with this identity."""
    if state.get("version") != version:
        raise ValueError(
            f"loader state has version {state.get('version')}, this reads {version}: "
            "start anew, or update dualtoken"
        )
    state_identity = state["plan"]
    # An identity leaves out what is at its default, so either one may lack a name of the other.
    for name in {**identity, **state_identity}:
        value = identity.get(name)
        state_value = state_identity.get(name)
        if value != state_value:
            raise ValueError(
                f"loader state has {name}={state_value}, this run {value}: make them equal, or start anew"
            )
