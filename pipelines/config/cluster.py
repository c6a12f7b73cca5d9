"""The recipe's `cluster` key: which Ray cluster runs the stages, and with how many workers."""

from pydantic import model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint


class ClusterConfig(Config):
    """Ray cluster of the stages, and the number of their workers."""

    address: str = not_in_fingerprint(default="local")
    """Ray address, host:port; `local` starts and stops a cluster of its own."""
    dashboard: str | None = not_in_fingerprint(default=None)
    """Dashboard, such as http://127.0.0.1:8265, that each stage of a workflow is sent to as a job."""
    num_cpus: PositiveInt | None = not_in_fingerprint(default=None)
    """CPUs of the local cluster; by default all of the machine's."""
    min_workers: PositiveInt = not_in_fingerprint(default=1)
    """Least actors of a stage; Ray Data scales between this and `max_workers`."""
    max_workers: PositiveInt = not_in_fingerprint(default=2)
    """Most actors of a stage."""
    gpus_per_worker: float = not_in_fingerprint(default=0.0, ge=0)
    """GPUs, or the share of one, for each worker of a stage that runs a network, training apart."""
    object_store_mb: PositiveInt = not_in_fingerprint(default=256)
    """Object store of the local cluster, MiB; units pass names, not data, so little is needed."""

    @model_validator(mode="after")
    def _workers_in_order(self) -> "ClusterConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is over max_workers={self.max_workers}: lower it"
            )
        return self
