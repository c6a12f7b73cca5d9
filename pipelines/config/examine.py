"""The recipe's `examine` key: what the unified model is asked and told to draw; imports no torch."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt, in_fingerprint_unless_default, not_in_fingerprint
from dualtoken.model.config.drawing import (
    DrawingConfig,
    GuidanceScale,
    Temperature,
    TopK,
    TopP,
    UnreadShare,
)


class ExamineConfig(Config):
    """Examination of the unified model on held-out samples.

    It draws by its own settings, `mllm.drawing`, but for those that are set here.
    """

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
    guidance_scale: GuidanceScale | None = None
    """Scale of classifier-free guidance; 1: none."""
    temperature: Temperature | None = None
    """Divisor of the logits of codes; 0 draws the likeliest."""
    top_k: TopK | None = None
    """Likeliest codes that one is chosen from; 0: all."""
    top_p: TopP | None = None
    """Probability of the likeliest codes that one is chosen from."""
    unread_share: UnreadShare | None = in_fingerprint_unless_default(default=None)
    """Share of the positions whose own codes are not read while the rest is drawn."""
    shared_noise: bool | None = in_fingerprint_unless_default(default=None)
    """Whether one noise serves all positions of a picture."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawings."""
    batch_size: PositiveInt = not_in_fingerprint(default=64)
    """Images that are drawn together."""

    def drawing(self, of_model: DrawingConfig) -> DrawingConfig:
        """Return how captions are drawn by a model with settings of its own."""
        return of_model.changed(**{name: getattr(self, name) for name in DrawingConfig.model_fields})
