"""Infrastructure: stores of files, bounded fetching from URLs, and Ray clusters, jobs and training groups.

Imports nothing else of ours. It is the place that touches disks, object stores, the network and Ray; only
`ray_train` imports torch. This face leaves Ray and aiohttp out, which take a second to import: import their
files by name.
"""

from dualtoken.infra.digests import FileDigest, digest
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, StoredFile, join

__all__ = ["FileDigest", "Store", "StoredFile", "digest", "join", "scratch_folder"]
