"""The recipe's `report` key: the page at the end of a run."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt


class ReportConfig(Config):
    """Report page of a run."""

    num_images: Annotated[int, Field(ge=1, le=256)] = 32
    """Held-out images that are shown beside their reconstructions."""
    batch_size: PositiveInt = 64
    """Images that a network takes at once."""
