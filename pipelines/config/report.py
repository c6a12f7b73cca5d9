"""The recipe's `report` key."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt


class ReportConfig(Config):
    """The page that a run ends with."""

    num_images: Annotated[int, Field(ge=1, le=256)] = 32
    """Held-out originals beside their reconstructions."""
    batch_size: PositiveInt = 64
