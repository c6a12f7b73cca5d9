"""The recipe's `cluster` key: where the stages run, and how wide."""

from pydantic import model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint


class ClusterConfig(Config):
    """Where and how wide the stages run."""

    address: str = not_in_fingerprint(default="local")
    """`local` starts and stops a cluster of its own; else a Ray address, host:port."""
    dashboard: str | None = not_in_fingerprint(default=None)
    """Send each stage of a workflow as a job to the cluster with this dashboard, such as http://127.0.0.1:8265."""
    num_cpus: PositiveInt | None = not_in_fingerprint(default=None)
    """Of the local cluster; all of the machine's by default."""
    min_workers: PositiveInt = not_in_fingerprint(default=1)
    max_workers: PositiveInt = not_in_fingerprint(default=2)
    """Actors of a stage; Ray Data scales between the two."""
    gpus_per_worker: float = not_in_fingerprint(default=0.0, ge=0)
    object_store_mb: PositiveInt = not_in_fingerprint(default=256)
    """Of the local cluster; units pass names, not data, so little is needed."""

    @model_validator(mode="after")
    def _workers_in_order(self) -> "ClusterConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is over max_workers={self.max_workers}: lower it"
            )
        return self
