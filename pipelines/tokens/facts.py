"""Typed records of a token dataset's own keys: `facts` of its receipts, and `details` of its manifest.

Both are JSON objects on disk, and FORMAT.md lists their keys. A record is read with `of` and gives the same
JSON back with `to_json`: same keys, same order, same numbers. Datasets from before a key was introduced lack
it: it is None here, and absent from the JSON that is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from dualtoken.pipelines.core.receipts import Manifest, Receipt
from dualtoken.pipelines.core.timing import PARTS_DETAIL

STREAMS = ("semantic", "pixel")
"""Names of the code streams, in the order of a shard's columns."""
CAPTIONS_OF = "captions_of"
"""Name of a receipt's fact and of a setting in the fingerprint: fingerprint of the dataset whose captions are
shared."""

ByDepth = Sequence[float]
"""One figure per depth of a stream, the first depth first."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A shard that is unlike its dataset."""

    shard: str
    kind: Literal["collapse", "drift", "low"]
    problem: str
    """Figure of the shard, beside that of the others."""

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.kind}: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Return the alarm as a manifest holds it."""
        return {"shard": self.shard, "kind": self.kind, "problem": self.problem}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAudit:
    """Audit of one shard: how evenly its codes are used, and how well they give the images back."""

    rows: int
    """Rows of the shard."""
    looked_at: Sequence[int]
    """Rows that were decoded again, 0 the first."""
    psnr: Sequence[float]
    """PSNR of those rows, dB."""
    perplexity: Mapping[str, ByDepth]
    """Perplexity of the codes, by stream."""

    @classmethod
    def of_json(cls, audit: Mapping[str, Any]) -> Self:
        """Read a receipt's `audit`."""
        return cls(
            rows=audit["rows"],
            looked_at=audit["looked_at"],
            psnr=audit["psnr"],
            perplexity=_by_stream(audit, "perplexity"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the audit as a receipt holds it."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "looked_at": list(self.looked_at),
            "psnr": list(self.psnr),
        }
        for stream, perplexity in self.perplexity.items():
            values[f"{stream}_perplexity"] = perplexity
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFacts:
    """Facts of one shard's receipt."""

    shard: str
    """Name of the shard, which is its unit's."""
    usage: Mapping[str, ByDepth]
    """Share of the codebook's codes that the shard uses, by stream."""
    audit: ShardAudit | None = None
    rows: int | None = None
    """Rows of the shard; None in receipts that leave them to `Receipt.rows_out`: see `rows_of`."""
    device: str | None = None
    """Kind of device that made the codes."""
    torch: str | None = None
    """Version of PyTorch that made them."""
    cudnn: str | None = None
    """Version of cuDNN that made them; None where a CPU did."""
    driver: str | None = None
    """Version of the GPU's driver likewise."""
    batch_size: int | None = None
    """Images encoded at once at the shard's end: fewer than the recipe's where memory did not hold them."""
    captions_of: str | None = None
    """Fingerprint of the dataset whose captions are shared; None where the dataset has its own."""
    seconds: Mapping[str, float] | None = None
    """Seconds by part of the work (`pipelines.core.timing`)."""

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        """Read the facts of a unit of pretokenize."""
        facts = receipt.facts
        audit = facts.get("audit")
        rows_by_shard = facts.get("rows_out_by_shard", {})
        return cls(
            shard=receipt.unit,
            usage=_by_stream(facts, "usage"),
            audit=ShardAudit.of_json(audit) if audit else None,
            rows=rows_by_shard.get(receipt.unit),
            device=facts.get("device"),
            torch=facts.get("torch"),
            cudnn=facts.get("cudnn"),
            driver=facts.get("driver"),
            batch_size=facts.get("batch_size"),
            captions_of=facts.get(CAPTIONS_OF),
            seconds=facts.get("seconds"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a receipt holds them, in the order in which they are written."""
        values: dict[str, Any] = {}
        for stream, usage in self.usage.items():
            values[f"{stream}_usage"] = usage
        # The filter has this fact too, for its many shards (`pipelines.curation.facts`); the manifest adds
        # both up.
        rows_by_shard = None if self.rows is None else {self.shard: self.rows}
        optional = {
            "audit": self.audit.to_json() if self.audit else None,
            "rows_out_by_shard": rows_by_shard,
            "device": self.device,
            "torch": self.torch,
            "cudnn": self.cudnn,
            "driver": self.driver,
            "batch_size": self.batch_size,
            CAPTIONS_OF: self.captions_of,
            "seconds": self.seconds,
        }
        return values | _present(optional)

    @property
    def made_by(self) -> str | None:
        """Device and PyTorch version that made the codes, in words; None in receipts that do not say so."""
        if self.device is None:
            return None
        return f"{self.device}, torch {self.torch}"


def rows_of(receipt: Receipt) -> int:
    """Return the rows of a unit's shard: of a sample there are as many as the recipe has crops."""
    rows = TokenFacts.of(receipt).rows
    return receipt.rows_out if rows is None else rows


class TokenizerIdentity(NamedTuple):
    """Identity of the tokenizer that made the codes."""

    fingerprint: str
    """Fingerprint of its training run."""
    sha256: str
    """SHA-256 of its weights, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSummary:
    """Audits of a dataset's shards, summed up."""

    rows: int
    """Rows that were decoded again, in all shards."""
    psnr_median: float | None
    """Median PSNR of those rows, dB; None where there were none."""
    psnr_lowest: float | None
    perplexity: Mapping[str, ByDepth]
    """Median perplexity of the shards, by stream; empty where no shard has an audit."""
    alarms: Sequence[Alarm]

    @classmethod
    def of_json(cls, audit: Mapping[str, Any]) -> Self:
        """Read a manifest's `audit`."""
        return cls(
            rows=audit["rows"],
            psnr_median=audit["psnr_median"],
            psnr_lowest=audit["psnr_lowest"],
            perplexity=_by_stream(audit, "perplexity"),
            alarms=[Alarm(**alarm) for alarm in audit["alarms"]],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a manifest holds it."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "psnr_median": self.psnr_median,
            "psnr_lowest": self.psnr_lowest,
        }
        for stream, perplexity in self.perplexity.items():
            values[f"{stream}_perplexity"] = perplexity
        values["alarms"] = [alarm.to_json() for alarm in self.alarms]
        return values


def is_token_dataset(manifest: Manifest) -> bool:
    """Tell whether a manifest is a token dataset's: its details say which version of the format it has."""
    return "schema_version" in manifest.details


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDetails:
    """Details of a token dataset's manifest."""

    schema_version: int
    tokenizer: TokenizerIdentity
    grid: tuple[int, int]
    """Rows and columns of positions."""
    depth: int
    """Codes per position and stream."""
    num_codes: Mapping[str, int]
    """Size of the codebook, by stream."""
    rows: int
    shards: int
    devices: Sequence[str] | None = None
    """Devices and PyTorch versions that made the codes (`TokenFacts.made_by`), each once."""
    audit: AuditSummary | None = None
    seconds_by_part: Mapping[str, float] | None = None
    """Seconds of work by part, all units added up."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Read the details of a finished token dataset."""
        details = manifest.details
        rows, columns = details["grid"]
        tokenizer = details["tokenizer"]
        audit = details.get("audit")
        return cls(
            schema_version=details["schema_version"],
            tokenizer=TokenizerIdentity(tokenizer["fingerprint"], tokenizer["sha256"]),
            grid=(rows, columns),
            depth=details["depth"],
            num_codes=details["codes"],
            rows=details["rows"],
            shards=details["shards"],
            devices=details.get("devices"),
            audit=None if audit is None else AuditSummary.of_json(audit),
            seconds_by_part=details.get(PARTS_DETAIL),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the details as a manifest holds them, in the order in which they are written."""
        values: dict[str, Any] = {
            "schema_version": self.schema_version,
            "tokenizer": {"fingerprint": self.tokenizer.fingerprint, "sha256": self.tokenizer.sha256},
            "grid": list(self.grid),
            "depth": self.depth,
            "codes": dict(self.num_codes),
            "rows": self.rows,
            "shards": self.shards,
        }
        optional = {
            "devices": self.devices,
            "audit": self.audit.to_json() if self.audit else None,
            PARTS_DETAIL: self.seconds_by_part,
        }
        return values | _present(optional)


def _by_stream(values: Mapping[str, Any], figure: str) -> dict[str, ByDepth]:
    """Return a figure with a key for each stream, such as `semantic_usage`, by stream, where present."""
    figures: dict[str, ByDepth] = {}
    for stream in STREAMS:
        name = f"{stream}_{figure}"
        if name in values:
            figures[stream] = values[name]
    return figures


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there: a key without one is not written, as in datasets from before it."""
    return {name: value for name, value in values.items() if value is not None}
