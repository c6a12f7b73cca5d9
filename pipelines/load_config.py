"""What a recipe says of reading its tokens for training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import Config, Location, run_only
from pipelines.corpus_config import Name

Share = Annotated[float, Field(ge=0)]


class LoadConfig(Config):
    """How `pipelines.recipe_tokens.load_plan` reads the run's tokens; no stage's output depends on it."""

    corpora: tuple[Name, ...] | None = run_only(default=None, min_length=1)
    """In this order; by default all that training may see."""
    streams: tuple[Literal["semantic", "pixel"], ...] = run_only(default=("semantic", "pixel"), min_length=1)
    weights: dict[int, dict[Name, Share]] | None = run_only(default=None)
    """Each corpus's share by first sample, such as {0: {photos: 3, drawings: 1}}: an endless run."""
    epochs: dict[Name, Share] | None = run_only(default=None)
    """How often each corpus is read in a run of so many samples; once each where neither this nor `weights` is set."""
    seed: int = run_only(default=0)
    shuffle: bool = run_only(default=True)
    shuffle_shards: int | None = run_only(default=None, ge=1)
    """Shuffle rows among so many shards at a time, for corpora that lie afar."""
    with_captions: bool = run_only(default=False)
    check: Literal["first_touch", "never"] = run_only(default="first_touch")
    """When a shard's checksum is taken: before its first row is read, or not, as after `dualtoken verify`."""
    cache: Location | None = run_only(default=None)
    """A local folder for copies of remote shards and of captions, shared by the processes of a machine."""
    cache_gb: float = run_only(default=100.0, gt=0)
    """Of copies that are kept."""
    on_damage: Literal["raise", "quarantine"] = run_only(default="raise")
    """A damaged shard ends the run, or is left out of it and written into `damage_ledger`."""
    damage_ledger: Location | None = run_only(default=None)
    """A file of JSON lines on a disk that all ranks share."""

    @model_validator(mode="after")
    def _one_length(self) -> "LoadConfig":
        if self.weights is not None and self.epochs is not None:
            raise ValueError("weights and epochs are both set: weights make an endless run, epochs a finite one; leave one out")
        if self.on_damage == "quarantine" and self.damage_ledger is None:
            raise ValueError("on_damage=quarantine without damage_ledger: set it to a file for the shards that are lost")
        return self

    def named(self) -> set[str]:
        """Return the corpora that any key names."""
        return {*(self.corpora or ()), *(self.epochs or {}), *(name for shares in (self.weights or {}).values() for name in shares)}
