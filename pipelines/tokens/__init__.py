"""Token datasets: written (`pretokenize`), audited, described, read, and exported to other formats.

May import `errors`, `config`, `core`, `images`, `inference`, `curation`, `infra` and `model`. Reads and
writes stores through `infra.storage`. Only `pretokenize` and what it encodes with need an accelerator;
nothing here imports torch until it is used, so the planner and the command line may import any file but
`pretokenize` and `encoded_unit`.
"""

from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails, TokenFacts
from dualtoken.pipelines.tokens.reader import TokenDataset, TokenRows
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shards import INDEX_FILE, ROWS_PER_BATCH, SCHEMA_VERSION

__all__ = [
    "INDEX_FILE",
    "ROWS_PER_BATCH",
    "SCHEMA_VERSION",
    "STREAMS",
    "DamagedShardError",
    "ShardCache",
    "TokenDataset",
    "TokenDetails",
    "TokenFacts",
    "TokenRows",
]
