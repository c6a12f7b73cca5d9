"""The recipe's `load` key: how a training reads its tokens."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dualtoken.model.config.base import Config, Location, PositiveInt, is_url
from dualtoken.pipelines.config.corpora import Name


def _require_local(place: str) -> str:
    if is_url(place):
        raise ValueError(f"{place} is a URL: give a folder or file of this machine's disks")
    return place


def _require_some_share(shares: dict[str, float]) -> dict[str, float]:
    if not sum(shares.values()):
        raise ValueError("no corpus has a share over 0: give one that is to be read")
    return shares


LocalPlace = Annotated[Location, AfterValidator(_require_local)]
Shares = Annotated[dict[Name, Annotated[float, Field(ge=0)]], AfterValidator(_require_some_share)]
"""Share of each corpus, in any unit; a corpus that is not named has none."""


class LoadConfig(Config):
    """Reading of a run's tokens by `pipelines.loader.from_recipe.load_plan`.

    No stage's output depends on it.
    """

    corpora: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Corpora in the order of reading; by default all that training may see."""
    streams: Annotated[tuple[Literal["semantic", "pixel"], ...], Field(min_length=1)] = ("semantic", "pixel")
    """Streams of codes to read; of one that is left out nothing is read but for the checksum of its file."""
    weights: dict[Annotated[int, Field(ge=0)], Shares] | None = None
    """Corpora's shares from each sample number on: {0: {photos: 3, drawings: 1}}. The run is endless then."""
    epochs: Shares | None = None
    """Passes over each corpus, in a run of so many samples.

    One pass over each, where neither this nor `weights` is set.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of rows and of corpora."""
    shuffle: bool = True
    """Whether rows come in an order decided by seed and epoch, or in their order on disk."""
    shuffle_shards: PositiveInt | None = None
    """Window of the shuffle, in shards, for corpora on a remote store; without it all rows are shuffled."""
    with_captions: bool = False
    """Whether captions are read beside the codes."""
    check: Literal["first_touch", "never"] = "first_touch"
    """Moment at which a shard's checksum is taken.

    Before its first row is read, or `never`, such as after `dualtoken verify`.
    """
    cache: LocalPlace | None = None
    """Folder for copies of remote shards and of captions, shared by the processes of a machine."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """Size of the copies that are kept, GB."""
    on_damage: Literal["raise", "quarantine"] = "raise"
    """Action on a damaged shard: end the run, or leave the shard out and write it into `damage_ledger`."""
    damage_ledger: LocalPlace | None = None
    """File of JSON lines on a disk that all ranks share."""

    @model_validator(mode="after")
    def _endless_or_finite(self) -> "LoadConfig":
        if self.weights is not None and self.epochs is not None:
            raise ValueError(
                "weights and epochs are both set: weights make an endless run, epochs a finite one; "
                "leave one out"
            )
        if self.weights is not None and 0 not in self.weights:
            raise ValueError("weights do not begin at sample 0: add {0: ...}")
        return self

    @model_validator(mode="after")
    def _windows_are_shuffled(self) -> "LoadConfig":
        if self.shuffle_shards and not self.shuffle:
            raise ValueError(f"shuffle_shards={self.shuffle_shards} with shuffle=false: leave one out")
        return self

    @model_validator(mode="after")
    def _damage_is_written_down(self) -> "LoadConfig":
        if self.on_damage == "quarantine" and self.damage_ledger is None:
            raise ValueError(
                "on_damage=quarantine without damage_ledger: set it to a file for the shards that are lost"
            )
        return self

    def named(self) -> set[str]:
        """Return the corpora that any key names."""
        names = {*(self.corpora or ()), *(self.epochs or {})}
        for shares in (self.weights or {}).values():
            names.update(shares)
        return names
