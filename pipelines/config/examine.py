"""The recipe's `examine` key: what the unified model is asked and told to draw; imports no torch."""

from dualtoken.model.config.base import PositiveInt, not_in_fingerprint
from dualtoken.pipelines.config.drawing import DrawingConfig


class ExamineConfig(DrawingConfig):
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
    batch_size: PositiveInt = not_in_fingerprint(default=64)
    """Images that are drawn together."""
