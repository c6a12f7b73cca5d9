"""The recipe's `examine` key: what the unified model is asked and told to draw; imports no torch."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint


class ExamineConfig(Config):
    """Examination of the unified model on held-out samples."""

    num_images: PositiveInt = 1024
    """Held-out images that questions are asked about, and among which drawings look for their own: the first
    ones."""
    num_descriptions: PositiveInt = 256
    """Held-out images that are described."""
    num_drawings: PositiveInt = 256
    """Held-out captions that are drawn, once with guidance and once without."""
    num_shown: PositiveInt = 8
    """Captions that the report shows drawings of, evenly spread over those of the described images."""
    drawings_shown: PositiveInt = 4
    """Drawings of each of them."""
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    """Scale of classifier-free guidance; 1: none."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divisor of the logits of codes; 0 draws the likeliest."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Likeliest codes that one is chosen from; 0: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability of the likeliest codes that one is chosen from."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawings."""
    batch_size: PositiveInt = not_in_fingerprint(default=64)
    """Images that are drawn together."""
