"""Where a recipe's images come from, and what of them training never sees; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field

from dualtoken.model.config.base import Config, Location, PositiveInt

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Names a folder, so: lower case, digits, dot, dash, underscore."""


Fraction = Annotated[float, Field(gt=0, lt=1)]


class ScenesSource(Config):
    """The embedded generator: small synthetic scenes with captions, served over HTTP on this machine."""

    kind: Literal["scenes"]
    split: Literal["train", "heldout"] = "train"
    """The splits share no combination of attributes."""
    num_images: PositiveInt = 12_000
    seed: int = 0


class UrlsSource(Config):
    """A table of image URLs and captions."""

    kind: Literal["urls"]
    table: Location
    """A .parquet, .csv or .tsv file."""
    url_column: str = "url"
    caption_column: str = "caption"
    keep_columns: tuple[str, ...] = ()
    """Further columns to carry along, such as license."""


class ShardsSource(Config):
    """Existing webdataset shards in img2dataset's layout, read where they are."""

    kind: Literal["shards"]
    folder: Location
    """A folder with NNNNN.tar and NNNNN.parquet."""


class CorpusConfig(Config):
    """A named image-text dataset."""

    source: Annotated[ScenesSource | UrlsSource | ShardsSource, Field(discriminator="kind")]


class HeldoutCorpus(Config):
    """Hold a whole corpus out of training."""

    kind: Literal["corpus"]
    corpus: Name


class HeldoutFraction(Config):
    """Hold a share of each corpus out of training, chosen by the samples' keys."""

    kind: Literal["fraction"]
    fraction: Fraction
