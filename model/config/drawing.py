"""How a unified model draws captions: guidance and sampling."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, in_fingerprint_unless_default

GuidanceScale = Annotated[float, Field(ge=0, lt=float("inf"))]
Temperature = Annotated[float, Field(ge=0, lt=float("inf"))]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
UnreadShare = Annotated[float, Field(ge=0, le=1)]


class DrawingConfig(Config):
    """Settings of drawings; what is random in each follows from its seed and number."""

    guidance_scale: GuidanceScale = 3.0
    """Scale of classifier-free guidance; 1: none."""
    temperature: Temperature = 1.0
    """Divisor of the logits of codes; 0 draws the likeliest."""
    top_k: TopK = 0
    """Likeliest codes that one is chosen from; 0: all."""
    top_p: TopP = 1.0
    """Probability of the likeliest codes that one is chosen from."""
    unread_share: UnreadShare = in_fingerprint_unless_default(default=0.0)
    """Share of the positions whose own codes are not read while the rest is drawn.

    A model that was trained with `code_dropout` follows the caption more closely then, since its mistakes
    mislead it less; parts of the picture agree less with each other.
    """

    shared_noise: bool = in_fingerprint_unless_default(default=False)
    """Whether one noise serves all positions of a picture, in place of one for each.

    Positions that do not read each other then get the same codes where they have like probabilities, so that
    a plain ground stays plain. A position that reads no other has the model's probabilities either way; one
    that reads others has not quite, since their codes were chosen by the same number.
    """

    # Both types are named, since the checker of the tests takes no int for a float.
    def changed(self, **settings: float | int | None) -> "DrawingConfig":  # noqa: PYI041
        """Return these settings with those that are given in place of its own; None is not given.

        Values are not checked: whoever draws with them does so.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        assert given.keys() <= type(self).model_fields.keys(), f"no such settings: {sorted(given)}"
        return self.model_copy(update=given)
