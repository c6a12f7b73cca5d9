"""Embeddings of texts by a frozen teacher, each text once. T texts, E channels of an embedding."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dualtoken.pipelines.images.samples import batched

TEXT_BATCH = 32
"""Texts at once; the last batch is padded, so that an embedding does not depend on what is asked with it."""

EmbedTexts = Callable[[Sequence[str]], Tensor]
"""Returns the unit embeddings of texts, (T, E)."""


class TextEmbeddings:
    """Unit embeddings of texts, which stay on the CPU once they are asked for."""

    def __init__(self, embed: EmbedTexts) -> None:
        self._embed = embed
        self._known: dict[str, Tensor] = {}

    def of(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        """Return the embeddings of texts, in their order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        for part in batched(missing, TEXT_BATCH):
            padded = [*part, *[part[-1]] * (TEXT_BATCH - len(part))]
            embeddings = self._embed(padded)[: len(part)].cpu()
            self._known.update(zip(part, embeddings, strict=True))
        return torch.stack([self._known[text] for text in texts])
