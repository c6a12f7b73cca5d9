"""Samples of finished evaluations as pictures: images as a tokenizer sees them, and what it kept of them."""

import base64
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.evaluation.evaluate import MODEL_INPUT, SET_INPUT, joined_codes
from dualtoken.pipelines.evaluation.evaluations import made_from
from dualtoken.pipelines.evaluation.saved_subject import local_tokenizer
from dualtoken.pipelines.evaluation.sets import SET_FILE, ResolvedSet, read_unit
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.inference.networks import StreamCodes, TokenizerRunner, best_device


class SamplePictures:
    """The model and the samples of a result, opened again to be looked at."""

    def __init__(self, result: SetResult, keys: Collection[bytes]) -> None:
        """Open the model, and read the rows of the samples with these keys."""
        record = made_from(result)
        self.protocol = EvaluationProtocol.model_validate(record.recipe["protocols"][result.protocol])
        """What the samples were measured by."""
        self._rows = _rows(Store(record.inputs[SET_INPUT]), keys)
        with scratch_folder() as scratch:
            folder = Store(record.inputs[MODEL_INPUT]).local_folder(Path(scratch))
            self._model = TokenizerRunner(local_tokenizer(folder), best_device(), self.protocol.precision)

    def row(self, key: bytes) -> dict[str, Any]:
        """Return a sample's row of the set: `name`, `captions` and the rest."""
        return self._rows[key]

    def original(self, key: bytes) -> str:
        """Return a sample as the tokenizer sees it, a `data:` URL."""
        return shot(self._model.levels([self._view(key)])[0])

    def reconstruction(self, key: bytes) -> str:
        """Return what the sample's pixel codes say of it."""
        codes = self._model.encode([self._view(key)])
        return shot(self._model.decode(codes.pixel)[0])

    def codes(self, keys: Sequence[bytes]) -> StreamCodes:
        """Return the samples' codes, encoded in batches of the protocol's size, as they were to be scored."""
        batch_size = self.protocol.batch_size
        parts: list[StreamCodes] = []
        for batch in batched(keys, batch_size):
            views = [self._view(key) for key in batch]
            codes = self._model.encode(views + [views[-1]] * (batch_size - len(batch)))
            parts.append(StreamCodes(codes.semantic[: len(batch)], codes.pixel[: len(batch)]))
        return joined_codes(parts)

    def _view(self, key: bytes) -> Image.Image:
        return first_view(decode_rgb(self._rows[key]["image"]), (self.protocol.view,), key)


def _rows(folder: Store, keys: Collection[bytes]) -> dict[bytes, dict[str, Any]]:
    """Return the rows of a set's samples, by key."""
    found: dict[bytes, dict[str, Any]] = {}
    with scratch_folder() as scratch:
        for unit in ResolvedSet.read(folder, SET_FILE).units:
            table = read_unit(folder, unit, Path(scratch))
            for row, key in enumerate(table["key"].to_pylist()):
                if key in keys:
                    found[key] = table.slice(row, 1).to_pylist()[0]
    return found


def shot(levels: UInt8[Tensor, "3 S S"]) -> str:
    """Return a picture as a `data:` URL."""
    stream = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
