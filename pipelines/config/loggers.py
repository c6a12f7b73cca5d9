"""Services that show a training beside TensorBoard, as a recipe names them; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dualtoken.model.config.base import Config, kind_by_its_name


class _LoggerConfig(Config):
    """What all services have in common; none has a key for a secret, their own programs and variables do."""

    pictures: bool = False
    """Send the pictures of `log_images_every` too. They are of the run's own images, and `forget` cannot
    delete them where they are sent."""


class WandbConfig(_LoggerConfig):
    """Weights & Biases; its API key comes from `wandb login` or WANDB_API_KEY."""

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)] = "dualtoken"
    """Project of the run."""
    entity: str | None = None
    """User or team that the project belongs to; by default the key's own."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the stage's `logs/wandb`, for `wandb sync` later."""


class MlflowConfig(_LoggerConfig):
    """MLflow; user and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    kind: Literal["mlflow"]
    tracking_uri: Annotated[str, Field(min_length=1)] | None = None
    """Server or database, such as `http://host:5000` or `sqlite:////folder/mlflow.db`; by default
    MLFLOW_TRACKING_URI."""
    experiment: Annotated[str, Field(min_length=1)] = "dualtoken"
    """Experiment of the run."""


LoggerConfig = Annotated[
    WandbConfig | MlflowConfig, Field(discriminator="kind"), BeforeValidator(kind_by_its_name)
]
"""`wandb`, `mlflow`, or a mapping with its `kind`."""
