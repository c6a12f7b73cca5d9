"""The samples that lost most between two evaluations, as pictures: the image, and what each model kept."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import TokenizerProtocol
from dualtoken.pipelines.core.receipts import StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import Comparison
from dualtoken.pipelines.evaluation.comparison import most_lost
from dualtoken.pipelines.evaluation.comparison_page import ShownSample, ShownSeries, render_comparison
from dualtoken.pipelines.evaluation.evaluate import MODEL_INPUT, SET_INPUT
from dualtoken.pipelines.evaluation.evaluations import Evaluation, made_from
from dualtoken.pipelines.evaluation.sets import SET_FILE, ResolvedSet, read_unit
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.inference.networks import TokenizerRunner, best_device, prepare_process


def comparison_page(
    comparison: Comparison, a: Evaluation, b: Evaluation, series: Sequence[str], num_samples: int
) -> str:
    """Return the page of a comparison, with the samples that lost most by each of some series."""
    prepare_process(threads=None)
    shown = [ShownSeries(name, list(_shown(a, b, name, num_samples))) for name in series]
    return render_comparison(comparison, shown)


def _shown(a: Evaluation, b: Evaluation, series: str, num_samples: int) -> Iterator[ShownSample]:
    lost = most_lost(a.summary, a.scores, b.summary, b.scores, series, num_samples)
    if not lost:
        return
    result = _result(a, series)
    first = made_from(result)
    second = made_from(_result(b, series))
    rows = _rows(first, {sample.key for sample in lost})
    protocol = TokenizerProtocol.model_validate(first.recipe["protocols"][result.protocol])
    models = [_open(first), _open(second)]
    for sample in lost:
        row = rows[sample.key]
        picture = first_view(decode_rgb(row["image"]), (protocol.view,), sample.key)
        original = models[0].levels([picture])
        yield ShownSample(
            name=row["name"],
            captions=tuple(row["captions"]),
            loss=sample,
            original=_shot(original[0]),
            first=_shot(_reconstructed(models[0], picture)),
            second=_shot(_reconstructed(models[1], picture)),
        )


def _result(evaluation: Evaluation, series: str) -> SetResult:
    for result in evaluation.summary.results:
        if any(result.series(name) == series for name in result.metrics):
            return result
    raise UserError(f"series={series} is not in both evaluations: name one that is")


def _rows(record: StageRecord, keys: set[bytes]) -> dict[bytes, dict[str, Any]]:
    """Return the rows of a set's samples, by key."""
    folder = Store(record.inputs[SET_INPUT])
    found: dict[bytes, dict[str, Any]] = {}
    with scratch_folder() as scratch:
        for unit in ResolvedSet.read(folder, SET_FILE).units:
            table = read_unit(folder, unit, Path(scratch))
            for row, key in enumerate(table["key"].to_pylist()):
                if key in keys:
                    found[key] = table.slice(row, 1).to_pylist()[0]
    return found


def _open(record: StageRecord) -> TokenizerRunner:
    with scratch_folder() as scratch:
        folder = Store(record.inputs[MODEL_INPUT]).local_folder(Path(scratch))
        return TokenizerRunner(folder, best_device())


def _reconstructed(model: TokenizerRunner, picture: Image.Image) -> UInt8[Tensor, "3 S S"]:
    return model.decode(model.encode([picture]).pixel)[0]


def _shot(levels: UInt8[Tensor, "3 S S"]) -> str:
    """Return a picture as a `data:` URL."""
    stream = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
