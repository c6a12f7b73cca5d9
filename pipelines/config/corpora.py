"""A recipe's corpora: their sources, and what is held out of training; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dualtoken.model.config.base import Config, Location, PositiveInt, in_fingerprint_unless_default

JSON = "json"
"""Suffix of the member that holds what else is known of a sample."""


def _caption_key(written: str) -> str:
    """Return a caption's place as it is looked up in a tar: suffixes are lower-case, keys of JSON are not."""
    if written.lower() == JSON:
        raise ValueError("json is a whole member: set it to json.KEY, such as json.text")
    if written.startswith(".") or written.endswith(".") or "/" in written:
        raise ValueError(
            f"{written!r} is no suffix: write it without the first dot, such as txt or json.text"
        )
    suffix, dot, key = written.partition(".")
    if suffix.lower() == JSON and dot:
        return f"{JSON}.{key}"
    return written.lower()


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Name of a folder, so only: lower case, digits, dot, dash, underscore."""
CaptionKey = Annotated[str, Field(min_length=1), AfterValidator(_caption_key)]
CaptionKeys = Annotated[tuple[CaptionKey, ...], Field(min_length=1)]
QuoteMarks = Literal["csv", "none"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ScenesSource(Config):
    """The embedded generator: small synthetic scenes with captions, served over HTTP on this machine."""

    kind: Literal["scenes"]
    split: Literal["train", "heldout"] = "train"
    """Split of the scenes; the two share no combination of attributes."""
    num_images: PositiveInt = 12_000
    seed: int = 0


class UrlsSource(Config):
    """A table of image URLs and captions."""

    kind: Literal["urls"]
    table: Location
    """Table of URLs: a .parquet, .csv, .tsv or .jsonl file, or a folder or a glob of such parts.

    Text may be compressed (.csv.gz). Parts are in natural order of their names: part-2 is before part-10.
    """
    url_column: str = "url"
    caption_column: str = "caption"
    keep_columns: tuple[str, ...] = ()
    """Further columns to carry along, such as license."""
    quotes: QuoteMarks | None = in_fingerprint_unless_default(default=None)
    """What quote marks of a .csv or .tsv file are: `csv`, fields in them may hold delimiters and line ends;
    `none`, letters.

    By default `csv` for .csv files, but a quoted field that seems to hold further rows is refused; `none`
    for .tsv files.
    """


class ShardsSource(Config):
    """Existing webdataset shards, img2dataset's or any other, read where they are."""

    kind: Literal["shards"]
    folder: Location
    """Folder with NNNNN.tar and NNNNN.parquet, or with tars alone.

    A tar without a table has its samples' captions in members `.txt`, `.text` or `.caption`, or as `caption`
    in `.json`, unless `caption_key` says otherwise.
    """
    caption_key: CaptionKey | CaptionKeys | None = in_fingerprint_unless_default(default=None)
    """Where a tar without a table has a sample's caption: the suffix of a member, such as `en.txt`, or
    `json.KEY` for a key of the member `.json`.

    Of several, the first that a sample has. Tables have their captions in the column `caption`.
    """

    @property
    def caption_keys(self) -> tuple[str, ...]:
        """The recipe's own places of captions in the order of preference; none for the usual ones."""
        if self.caption_key is None:
            return ()
        if isinstance(self.caption_key, str):
            return (self.caption_key,)
        return self.caption_key


class FolderSource(Config):
    """A folder of images, with captions in a table, in text files beside them, or in their names.

    Images are the files with an image's suffix, in the folder and below, in natural order of their names.
    What begins with a dot is left out, and so are links to folders.
    """

    kind: Literal["folder"]
    folder: Location
    captions: Location | None = None
    """Table of captions, of the same kinds as a table of URLs; its names of files are relative to `folder`.

    By default a file `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` in the folder or below it, as
    Hugging Face's imagefolder has them; its names are relative to where it is. An image without a row has
    its caption in a `.txt` file of the same name, and else in its name.
    """
    file_column: str = "file_name"
    caption_column: str | None = None
    """By default `caption`, or `text` where there is no such column."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to carry along, such as license."""
    quotes: QuoteMarks | None = None
    """What quote marks of a .csv or .tsv file are, as in a table of URLs."""


AnySource = Annotated[ScenesSource | UrlsSource | ShardsSource | FolderSource, Field(discriminator="kind")]


class CorpusConfig(Config):
    """A named image-text dataset."""

    source: AnySource


class HeldoutCorpus(Config):
    """A whole corpus, held out of training."""

    kind: Literal["corpus"]
    corpus: Name


class HeldoutFraction(Config):
    """A share of each corpus, held out of training; the samples' keys decide which."""

    kind: Literal["fraction"]
    fraction: Fraction
