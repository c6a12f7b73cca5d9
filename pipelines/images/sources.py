"""What a plan asks of a corpus's source: how many rows it has, and what identifies them.

Imports no torch, so that a plan is made at once.
"""

from typing import Any

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import FolderSource, ScenesSource, ShardsSource, UrlsSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.content import content_ids
from dualtoken.pipelines.images.folder_source import folder_images
from dualtoken.pipelines.images.source_shards import find_shards
from dualtoken.pipelines.images.table_files import content_of
from dualtoken.pipelines.images.url_table import url_table


def count_source_rows(recipe: Recipe, corpus: str) -> list[int]:
    """Return the rows of each unit of a corpus's download; existing shards keep their own sizes."""
    source = recipe.corpora[corpus].source
    if isinstance(source, ShardsSource):
        return [shard.rows for shard in find_shards(source.folder, source.caption_keys)]
    if isinstance(source, ScenesSource):
        total = source.num_images
    elif isinstance(source, FolderSource):
        total = folder_images(recipe, corpus).num_rows
    else:
        total = url_table(recipe, corpus, None).num_rows
    size = recipe.download.rows_per_shard
    return [min(size, total - first) for first in range(0, total, size)]


def source_identity(recipe: Recipe, corpus: str) -> dict[str, Any]:
    """Return what decides a corpus's rows, for its fingerprint: columns, and the files' content."""
    source = recipe.corpora[corpus].source
    identity = source.identity()
    # The content counts, not where it is.
    for location in ("table", "folder", "captions"):
        identity.pop(location, None)
    if isinstance(source, UrlsSource):
        identity["content"] = content_of(url_table(recipe, corpus, None).files)
    if isinstance(source, FolderSource):
        identity |= folder_images(recipe, corpus).identity(recipe.download.rows_per_shard)
    if isinstance(source, ShardsSource):
        store = Store(source.folder)
        suffixes = (".tar", ".parquet")
        shards = [file for file in store.entries() if file.name.endswith(suffixes) and not file.is_leftover]
        identity["files"] = content_ids(store, shards)
    return identity
