"""How a unified model draws captions: settings that examinations and evaluations share; imports no torch."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, in_fingerprint_unless_default


class DrawingConfig(Config):
    """Guidance and sampling of drawings; the noise of each follows from the seed and the sample."""

    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    """Scale of classifier-free guidance; 1: none."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divisor of the logits of codes; 0 draws the likeliest."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Likeliest codes that one is chosen from; 0: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability of the likeliest codes that one is chosen from."""
    unread_share: Annotated[float, Field(ge=0, le=1)] = in_fingerprint_unless_default(default=0.0)
    """Share of the positions whose own codes are not read while the rest is drawn.

    A model that was trained with `code_dropout` follows the caption more closely then, since its mistakes
    mislead it less; parts of the picture agree less with each other.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawings."""
