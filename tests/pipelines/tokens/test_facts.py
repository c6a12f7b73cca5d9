"""Facts and details are read as records, and give back the very JSON that they were read from."""

import json
from typing import Any

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest, Receipt, read_manifest, read_receipts
from dualtoken.pipelines.curation.facts import FilterFacts
from dualtoken.pipelines.tokens.facts import Alarm, TokenDetails, TokenFacts, rows_of
from tests.helpers.tiny_run import planned

CORPUS = "tiny-train"
OLDEST_FACTS: dict[str, Any] = {"semantic_usage": [0.5], "pixel_usage": [1]}
FACTS: dict[str, Any] = {
    **OLDEST_FACTS,
    "audit": {
        "rows": 8,
        "looked_at": [3, 5],
        "psnr": [22, 23.5],
        "semantic_perplexity": [9.125],
        "pixel_perplexity": [1.0],
    },
    "rows_out_by_shard": {"00003": 8},
    "device": "NVIDIA H100",
    "torch": "2.13.0",
    "captions_of": "0123456789ab",
    "seconds": {"fetch": 0.5, "encode": 2, "commit": 0.125},
}
OLDEST_DETAILS: dict[str, Any] = {
    "schema_version": 1,
    "tokenizer": {"fingerprint": "f", "sha256": "s"},
    "grid": [27, 27],
    "depth": 8,
    "codes": {"semantic": 16384, "pixel": 16384},
    "rows": 9,
    "shards": 2,
}
DETAILS: dict[str, Any] = {
    **OLDEST_DETAILS,
    "devices": [],
    "audit": {
        "rows": 0,
        "psnr_median": None,
        "psnr_lowest": None,
        "semantic_perplexity": [],
        "pixel_perplexity": [9.5],
        "alarms": [{"shard": "00003", "kind": "low", "problem": "PSNR 9.0 dB"}],
    },
    "seconds_by_part": {},
}


def receipt(facts: dict[str, Any]) -> Receipt:
    return Receipt(
        stage="pretokenize",
        corpus="a",
        unit="00003",
        fingerprint="f",
        attempt="1",
        rows=4,
        counts={"ok": 3, "failed:undecodable": 1},
        files=(),
        facts=facts,
        finished_at="2020-01-01T00:00:00+00:00",
        seconds=3.0,
    )


def manifest(details: dict[str, Any]) -> Manifest:
    return Manifest(
        stage="pretokenize",
        corpus="a",
        fingerprint="f",
        root_hash="h",
        rows_in=4,
        counts={"ok": 4},
        units={"00003": 4},
        bytes=1,
        seconds=1.0,
        first_started_at="2020-01-01T00:00:00+00:00",
        last_finished_at="2020-01-01T00:00:00+00:00",
        files=(),
        details=details,
    )


@pytest.mark.parametrize("facts", [FACTS, OLDEST_FACTS, FACTS | {"audit": {**FACTS["audit"], "psnr": []}}])
def test_facts_give_back_their_json_key_by_key(facts: dict[str, Any]) -> None:
    assert json.dumps(TokenFacts.of(receipt(facts)).to_json()) == json.dumps(facts)


@pytest.mark.parametrize("details", [DETAILS, OLDEST_DETAILS])
def test_details_give_back_their_json_key_by_key(details: dict[str, Any]) -> None:
    assert json.dumps(TokenDetails.of(manifest(details)).to_json()) == json.dumps(details)


def test_what_a_run_wrote_is_given_back_byte_by_byte(finished: Recipe) -> None:
    job = planned(finished, "pretokenize", CORPUS).job
    assert job is not None
    for unit, written in read_receipts(job.store()).items():
        again = written.model_copy(update={"facts": TokenFacts.of(written).to_json()})
        assert again.to_bytes() == job.store().read(f"receipts/{unit}.json")
    whole = read_manifest(job.store())
    assert whole is not None
    again = whole.model_copy(update={"details": TokenDetails.of(whole).to_json()})
    assert again.to_bytes() == job.store().read("manifest.json")


def test_a_receipt_that_does_not_say_its_rows_has_those_that_went_on() -> None:
    assert rows_of(receipt(FACTS)) == 8
    assert rows_of(receipt(OLDEST_FACTS)) == 3


def test_the_filters_fact_of_the_same_name_is_that_of_many_shards(finished: Recipe) -> None:
    job = planned(finished, "filter", CORPUS).job
    assert job is not None
    (written,) = read_receipts(job.store()).values()
    kept = FilterFacts.of(written).rows_by_shard
    assert kept is not None
    assert len(kept) > 1
    assert sum(kept.values()) == written.rows_out
    assert FilterFacts(kept).to_json() == written.facts
    assert FilterFacts.of(receipt(OLDEST_FACTS)).to_json() == {}


def test_devices_and_alarms_are_said_in_words() -> None:
    assert TokenFacts.of(receipt(FACTS)).made_by == "NVIDIA H100, torch 2.13.0"
    assert TokenFacts.of(receipt(OLDEST_FACTS)).made_by is None
    audit = TokenDetails.of(manifest(DETAILS)).audit
    assert audit is not None
    assert audit.alarms == [Alarm("00003", "low", "PSNR 9.0 dB")]
    assert str(audit.alarms[0]) == "shard 00003: low: PSNR 9.0 dB"
