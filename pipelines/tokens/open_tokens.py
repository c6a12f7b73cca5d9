"""Opens a run's token datasets for a stage that reads them by row, with copies where they are remote."""

from pathlib import Path

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache


def open_tokens(job: StageJob, corpus: str, copies: Path) -> TokenDataset:
    """Open the tokens of a corpus, which are an input of a job, as the recipe's `load` says.

    Remote shards are copied to `load.cache`, or to `copies` where the recipe names none. Raises as
    `TokenDataset`.
    """
    load = job.recipe.load
    store = job.input("pretokenize", corpus)
    cache = None
    if load.cache or not store.is_local:
        cache = ShardCache(Path(load.cache) if load.cache else copies, int(load.cache_gb * 1e9))
    return TokenDataset(store.url, check=load.check, cache=cache)
