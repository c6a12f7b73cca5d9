"""Ends an evaluation of a set: merges the units' sums in their order, and computes what needs all samples.

Writes `scores.parquet`, a row a sample and a column a metric, and `result.json`, a `SetResult`. The order of
units is fixed, so neither workers nor the order of their arrival change a bit. N samples, E channels.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.metrics.classification import is_neighbour_class
from dualtoken.model.metrics.codebook import code_rate, codebook_use
from dualtoken.model.metrics.frechet import Moments, influences_by, merge, moments, no_moments, transport
from dualtoken.model.metrics.linear_probe import fit_linear_probe, is_probed_class
from dualtoken.model.metrics.retrieval import is_recalled, retrieve
from dualtoken.pipelines.config.evaluation import EvaluationConfig, EvaluationProtocol, MetricName
from dualtoken.pipelines.core.commit import StageContent, commit_manifest, upload
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.evaluate import SET_INPUT, STREAMS, score_column, score_file, state_file
from dualtoken.pipelines.evaluation.feature_network import ORIGINALS, RECONSTRUCTIONS
from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE, TEACHER, margin
from dualtoken.pipelines.evaluation.protocols import protocol_hash
from dualtoken.pipelines.evaluation.sets import SET_FILE, ResolvedSet, data_file
from dualtoken.pipelines.evaluation.statistics import (
    Estimate,
    influence_estimate,
    mean_estimate,
    share_estimate,
)
from dualtoken.pipelines.evaluation.summary import SCORES, MetricValue, SetResult

RESULT = "result.json"
_KNOWN_SHARE = 0.5
"""Share of the samples, by key, that probe and neighbours learn from; the others are scored."""
_DISTANCES: dict[MetricName, tuple[str, str]] = {
    "fd_teacher": ("rows_teacher", "rows_reconstructions"),
    "fd": (ORIGINALS, RECONSTRUCTIONS),
}
"""States with the features of images and of reconstructions, by Fréchet distance."""
_DISTANCE_ROWS = 4096
"""Rows whose features are float64 at once: 64 MB of Inception's. Other parts would give other last bits."""


class TokenizerSizes(NamedTuple):
    """What the rate of codes is made from."""

    grid_size: int
    """Positions a side."""
    image_size: int
    """Pixels a side."""


def finish_evaluation(
    job: StageJob[EvaluationConfig], sizes: TokenizerSizes, content_of_protocol: dict[str, Any]
) -> SetResult:
    """Write the files of a whole set and its manifest; return the result."""
    resolved = ResolvedSet.read(job.input(SET_INPUT), SET_FILE)
    ((name, protocol),) = job.recipe.protocols.items()
    content = StageContent(job)
    with scratch_folder() as scratch:
        whole = _Whole(job, resolved, protocol, sizes, Path(scratch))
        metrics = whole.metrics()
        files = whole.write()
        result = SetResult(
            set_name=resolved.name,
            set_hash=resolved.set_hash,
            protocol=name,
            protocol_hash=protocol_hash(content_of_protocol),
            protocol_content=content_of_protocol,
            metrics=metrics,
            scores=job.folder,
        )
        (Path(scratch) / RESULT).write_bytes(result.to_bytes())
        files.append(upload(job.store(), Path(scratch), RESULT))
    commit_manifest(content, {}, files)
    return result


class _Whole:
    """All units' scores and states."""

    def __init__(
        self,
        job: StageJob[EvaluationConfig],
        resolved: ResolvedSet,
        protocol: EvaluationProtocol,
        sizes: TokenizerSizes,
        scratch: Path,
    ) -> None:
        self._store = job.store()
        self._scratch = scratch
        self._resolved = resolved
        self._set_folder = job.input(SET_INPUT)
        self._protocol = protocol
        self._sizes = sizes
        scores: list[pa.Table] = []
        self._counts: dict[str, Tensor] = {}
        parts: dict[str, list[Tensor]] = {}
        for unit in resolved.units:
            scores.append(pq.read_table(self._store.local_copy(score_file(unit), scratch)))
            for key, value in load_file(self._store.local_copy(state_file(unit), scratch)).items():
                if key.startswith("counts_"):
                    self._counts[key] = self._counts.get(key, torch.zeros_like(value)) + value
                else:
                    parts.setdefault(key, []).append(value)
        self._scores = pa.concat_tables(scores)
        self._rows = {key: torch.cat(values) for key, values in parts.items()}
        if not len(self._scores):
            raise UserError(f"sets.{resolved.name}: none of its images can be decoded: give others")

    def metrics(self) -> dict[str, MetricValue]:
        """Compute what needs all samples, and return the values of all metrics."""
        found: dict[str, MetricValue] = {}
        for name in self._protocol.metrics:
            metric = CATALOGUE[name]
            if not metric.is_per_sample:
                found[name] = self._of_counts(name)
            elif name in _DISTANCES:
                found[name] = self._distance(name)
            else:
                if metric.needs_every_sample:
                    self._add(name, self._of_all(name))
                found[name] = self._mean(name)
        return found

    def write(self) -> list[FileRecord]:
        """Write the scores of the whole set."""
        pq.write_table(self._scores, self._scratch / SCORES, compression="zstd")
        return [upload(self._store, self._scratch, SCORES)]

    def _add(self, name: MetricName, values: Tensor) -> None:
        """Add a column; samples that a metric leaves out are NaN here, and null there."""
        self._scores = self._scores.append_column(name, score_column(values.double().numpy()))

    def _value(self, name: MetricName, estimate: Estimate, column: str | None) -> MetricValue:
        metric = CATALOGUE[name]
        return MetricValue(
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            error=estimate.error,
            n=estimate.n,
            direction=metric.direction,
            unit=metric.unit,
            margin=margin(self._protocol, name),
            per_sample=column,
            is_mean=column == name,
        )

    def _without_error(self, name: MetricName, value: float) -> MetricValue:
        estimate = Estimate(value, len(self._scores), None, None, None, "no interval: made from counts")
        return self._value(name, estimate, None)

    def _clusters(self) -> pa.ChunkedArray | None:
        """Return the clusters of the samples; None where they are independent."""
        return self._scores["cluster"] if "clusters" in self._resolved.has else None

    def _mean(self, name: MetricName) -> MetricValue:
        scored = self._scores.filter(pc.field(name).is_valid())
        if not len(scored):
            raise UserError(
                f"sets.{self._resolved.name}: none of its samples that can be decoded has a value of {name}: "
                "leave it out, or give more"
            )
        values = scored[name].to_numpy()
        clusters = None if self._clusters() is None else scored["cluster"].to_numpy()
        if clusters is None and np.isin(values, (0.0, 1.0)).all():
            return self._value(name, share_estimate(values, name=name), name)
        return self._value(name, mean_estimate(values, clusters, name=name), name)

    def _of_counts(self, name: MetricName) -> MetricValue:
        kind, _, stream = name.partition("_")
        if name == "bits_per_pixel":
            positions = self._sizes.grid_size**2
            pixels = self._sizes.image_size**2
            rates = [code_rate(self._counts[f"counts_{each}"], positions, pixels) for each in STREAMS]
            return self._without_error(name, sum(rate.entropy_per_pixel for rate in rates))
        use = codebook_use(self._counts[f"counts_{stream}"])
        value = use.usage if kind == "usage" else use.perplexity_per_depth.mean()
        return self._without_error(name, value.item())

    def _of_all(self, name: MetricName) -> Tensor:
        """Return each sample's part of a metric that compares it with the others."""
        images = self._rows["rows_teacher" if name.endswith(TEACHER) else "rows_codes"]
        kind = name.removesuffix(TEACHER)
        if kind in ("image_to_text", "text_to_image"):
            return self._retrieved(kind, images)
        return self._learned(kind, images, self._rows["rows_labels"])

    def _retrieved(self, kind: str, images: Tensor) -> Tensor:
        """Return whether each image's best text is one of its own; the other way, the mean over its texts."""
        num_texts = self._rows["rows_num_texts"]
        rows = torch.repeat_interleave(torch.arange(len(images)), num_texts)
        found = retrieve(images, self._rows["rows_texts"], self._captions(), rows)
        if kind == "image_to_text":
            return is_recalled(found.texts, 1)
        right = torch.zeros(len(images), dtype=torch.float64)
        right.index_add_(0, rows, is_recalled(found.images, 1).double())
        return right / num_texts

    def _captions(self) -> list[str]:
        """Return the captions of the samples that were scored, in their order."""
        scored = set(self._scores["key"].to_pylist())
        captions: list[str] = []
        for unit in self._resolved.units:
            file = self._set_folder.local_copy(data_file(unit), self._scratch)
            table = pq.read_table(file, columns=["key", "captions"])
            for key, texts in zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True):
                if key in scored:
                    captions += texts
        return captions

    def _learned(self, kind: str, images: Tensor, labels: Tensor) -> Tensor:
        """Return whether what half of the samples teach is right of the others; NaN for that half."""
        keys = self._scores["key"].to_pylist()
        is_known = torch.tensor([key_fraction(key) < _KNOWN_SHARE for key in keys])
        num_known = int(is_known.sum())
        if num_known < self._protocol.neighbours or num_known == len(keys):
            raise UserError(
                f"sets.{self._resolved.name}: {len(keys)} images are too few for {kind}, which learns from "
                f"{num_known} of them: leave it out, or give more"
            )
        known = (images[is_known], labels[is_known])
        others = (images[~is_known], labels[~is_known])
        if kind == "knn":
            is_right = is_neighbour_class(*others, *known, self._protocol.neighbours)
        else:
            is_right = is_probed_class(fit_linear_probe(*known, len(self._resolved.class_names)), *others)
        right = torch.full((len(keys),), torch.nan, dtype=torch.float64)
        right[~is_known] = is_right.double()
        return right

    def _distance(self, name: MetricName) -> MetricValue:
        """Return the Fréchet distance of reconstructions and images, and keep each sample's influence."""
        of_originals, of_reconstructions = _DISTANCES[name]
        originals = self._rows[of_originals]
        reconstructions = self._rows[of_reconstructions]
        try:
            maps = transport(_moments(reconstructions), _moments(originals))
        except ValueError as error:
            raise UserError(
                f"sets.{self._resolved.name}: {name}: {error}: leave it out, or give more"
            ) from None
        parts: list[Tensor] = []
        for part in torch.arange(len(originals)).split(_DISTANCE_ROWS):
            centre = _centre(originals)
            parts.append(influences_by(maps, reconstructions[part], originals[part], centre))
        influences = torch.cat(parts)
        column = f"{name}_influence"
        self._scores = self._scores.append_column(column, pa.array(influences.numpy(), pa.float64()))
        clusters = self._clusters()
        names = None if clusters is None else clusters.to_numpy()
        estimate = influence_estimate(maps.distance, influences.numpy(), names, name=column)
        return self._value(name, estimate, column)


def _centre(features: Tensor) -> Tensor:
    """Return the fixed centre that sums over features are made around."""
    return torch.zeros(features.shape[1], dtype=torch.float64)


def _moments(features: Tensor) -> Moments:
    """Return the moments of features, part by part, so that few of them are float64 at once."""
    found = no_moments(features.shape[1])
    for part in features.split(_DISTANCE_ROWS):
        found = merge(found, moments(part, _centre(features)))
    return found
