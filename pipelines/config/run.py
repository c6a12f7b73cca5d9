"""What every run of stages is configured by, whatever its stages do; imports neither torch nor ray."""

from dualtoken.model.config.base import Config, Location, not_in_fingerprint
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.config.code import CodeConfig
from dualtoken.pipelines.config.corpora import Name


class RunConfig(Config):
    """Where a run writes, and what it runs on: all that commits and executors ask of a configuration."""

    name: Name
    """Name of the run."""
    root: Location = not_in_fingerprint(default="data", validate_default=True)
    """Folder or URL below which everything is written."""
    cluster: ClusterConfig = ClusterConfig()
    code: CodeConfig = not_in_fingerprint(default=CodeConfig())
