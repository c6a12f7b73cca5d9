"""What a recipe says of reading its tokens for training."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dualtoken.model.config.base import Config, Location, PositiveInt, is_url
from dualtoken.pipelines.config.corpora import Name


def _local(place: str) -> str:
    if is_url(place):
        raise ValueError(f"{place} is a URL: give a folder or file of this machine's disks")
    return place


def _some(shares: dict[str, float]) -> dict[str, float]:
    if not sum(shares.values()):
        raise ValueError("no corpus has a share over 0: give one that is to be read")
    return shares


LocalPlace = Annotated[Location, AfterValidator(_local)]
Shares = Annotated[dict[Name, Annotated[float, Field(ge=0)]], AfterValidator(_some)]
"""By corpus; one that is not named has none."""


class LoadConfig(Config):
    """How `pipelines.loader.from_recipe.load_plan` reads the run's tokens; no stage's output depends on it."""

    corpora: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """In this order; by default all that training may see."""
    streams: Annotated[tuple[Literal["semantic", "pixel"], ...], Field(min_length=1)] = ("semantic", "pixel")
    """Of one that is left out nothing is read but for the checksum of its file."""
    weights: dict[Annotated[int, Field(ge=0)], Shares] | None = None
    """Shares by first sample, such as {0: {photos: 3, drawings: 1}}: an endless run."""
    epochs: Shares | None = None
    """How often each corpus is read, in a run of so many samples. Once each, where neither this nor `weights` is set."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order of rows and of corpora."""
    shuffle: bool = True
    """Rows in an order of the seed and epoch, or as they lie."""
    shuffle_shards: PositiveInt | None = None
    """Shuffle rows among so many shards at a time, for corpora that lie afar."""
    with_captions: bool = False
    """Read captions beside the codes."""
    check: Literal["first_touch", "never"] = "first_touch"
    """When a shard's checksum is taken: before its first row is read, or not, as after `dualtoken verify`."""
    cache: LocalPlace | None = None
    """A folder for copies of remote shards and of captions, shared by the processes of a machine."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """Of copies that are kept."""
    on_damage: Literal["raise", "quarantine"] = "raise"
    """A damaged shard ends the run, or is left out of it and written into `damage_ledger`."""
    damage_ledger: LocalPlace | None = None
    """A file of JSON lines on a disk that all ranks share."""

    @model_validator(mode="after")
    def _endless_or_finite(self) -> "LoadConfig":
        if self.weights is not None and self.epochs is not None:
            raise ValueError(
                "weights and epochs are both set: weights make an endless run, epochs a finite one; leave one out"
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
        return {
            *(self.corpora or ()),
            *(self.epochs or {}),
            *(name for shares in (self.weights or {}).values() for name in shares),
        }
