"""The review of a fleet that loads: what ran out, what nobody knows, what is assumed, what is of no use."""

from __future__ import annotations

from datetime import date
from pathlib import PurePosixPath

import pytest

from policyd.core.fleet import Fleet
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.fleet_review import review

TODAY = date(2026, 11, 1)

COMPLETE = """\
sla_classes:
  - {name: std, ttft_p95_ms: 9000, ttft_p99_ms: 9000, stream_tokens_per_s: 1, availability_ppm: 1,
     cold_start_allowed: true, contention_allowed: true, interruption_allowed: true,
     weights: {control: 1000, availability: 0, price: 0, latency: 0, preference: 0}}
models:
  - name: m
    versions: [{version: "1", digest: "sha256:aa", approved_in: [prod], validation_expires: 2026-12-31}]
data_sources:
  - {name: s, classification: public, residency: [DE], owner: o}
tenants:
  - name: t
    title: T
    seat: DE
    sector: other
    zone: UTC
    floors: {residency: [DE], foreign_control: hard, permitted_seats: [EU], tenancy: shared, network: public,
             account: provider, certifications: [], max_retention_days: 0, training_allowed: false}
    sla_classes: [std]
    projects: [{name: p, environments: [prod], sources: [s]}]
pools:
  - id: one
    kind: on_demand
    group: g
    provider: p
    region: r
    account: ours
    network: private
    tenancy: shared
    dedicated_to: []
    hardware: rented
    locations: {processing: [DE], ingress: [DE], storage: [DE], weights: [DE], support_access: [DE]}
    region_binding: enforced
    operator: {name: O, seat: DE, parent_seat: DE}
    sub_processors: []
    certifications: [{name: SOC2, expires: 2026-12-31}]
    retention_days: 0
    trains_on_data: false
    accelerator: {name: H100, memory_gib: 80}
    gpu_count: 8
    capacity: {kind: fixed, gpus: 8}
    cold_start_ms: 0
    scale_to_zero: false
    contended: false
    interruption_per_hour_ppm: 0
    availability_ppm: 999000
    evidence: {source: s, verified_by: v, checked: 2026-07-01, expires: 2026-12-31}
    price: {unit: gpu_hour, amount: "2", status: list, source: s, checked: 2026-07-01}
    offerings:
      - model: m
        version: "1"
        digest: sha256:aa
        verified_by: weights_digest
        max_context_tokens: 1000
        gpus: 1
        performance: {prefill_tokens_per_s: 1000, decode_tokens_per_s: 100, stream_tokens_per_s: 10, ttft_p95_ms: 100,
                      ttft_p99_ms: 200, source: s, status: measured}
"""


def fleet(text: str) -> Fleet:
    return parse_fleet({PurePosixPath("f.yaml"): text.encode()})


def said(text: str, today: date = TODAY) -> list[str]:
    return [str(finding) for finding in review(fleet(text), today)]


def test_a_complete_fleet_has_nothing_to_say() -> None:
    assert said(COMPLETE) == []


def test_what_ran_out_is_named_with_its_day() -> None:
    assert said(COMPLETE, date(2026, 12, 31)) == [], "the last valid day is valid"
    assert said(COMPLETE, date(2027, 1, 1)) == [
        "models.m.1: validation is overdue since 2026-12-31",
        "pools.one.certifications.SOC2: expired on 2026-12-31",
        "pools.one.evidence: expired on 2026-12-31: have the facts checked again",
    ]


def test_commitments_that_ended_or_have_not_begun() -> None:
    text = COMPLETE.replace(
        "    price: {unit",
        "    commitment: {kind: contract, start: 2026-02-01, end: 2026-10-31, committed_gpus: 8, unused_gpus: 0,"
        " follows: list}\n    price: {unit",
    )
    assert said(text) == ["pools.one.commitment: ended on 2026-10-31; what follows: list"]
    assert said(text, date(2026, 1, 1)) == ["pools.one.commitment: starts on 2026-02-01"]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("    retention_days: 0\n", "retention_days"),
        ("    certifications: [{name: SOC2, expires: 2026-12-31}]\n", "certifications"),
        ("    region_binding: enforced\n", "region_binding"),
        ("    capacity: {kind: fixed, gpus: 8}\n", "capacity"),
        (", support_access: [DE]", "locations.support_access"),
        (", parent_seat: DE", "operator.parent_seat"),
    ],
)
def test_an_unknown_fact_of_a_pool_is_named(line: str, fact: str) -> None:
    assert line in COMPLETE
    assert said(COMPLETE.replace(line, "\n" if line.endswith("\n") else "")) == [
        f"pools.one: refused until these facts are known: {fact}"
    ]


@pytest.mark.parametrize(
    ("part", "fact"),
    [
        ("        digest: sha256:aa\n", "digest"),
        ("ttft_p95_ms: 100,", "ttft_p95_ms"),
        ("prefill_tokens_per_s: 1000, ", "performance.prefill_tokens_per_s"),
        ("    price: {unit: gpu_hour", "price"),
    ],
)
def test_an_unknown_fact_of_an_offering_is_named(part: str, fact: str) -> None:
    text = COMPLETE.replace(part, "    labels: {unit: gpu_hour" if "price:" in part else "")
    if "price:" in part:
        text = text.replace('gpu_hour, amount: "2", status: list, source: s, checked: 2026-07-01}', "gpu_hour}")
    assert said(text) == [f"pools.one.offerings.m: refused until these facts are known: {fact}"]


def test_a_committed_pool_needs_its_commitment() -> None:
    (line,) = said(COMPLETE.replace("kind: on_demand", "kind: committed"))
    assert line == "pools.one: refused until these facts are known: commitment"


def test_assumed_prices_are_said() -> None:
    assert said(COMPLETE.replace("status: list", "status: assumed")) == ["pools.one.price: has status assumed (s)"]
    own = (
        "        gpus: 1\n        price: {unit: gpu_hour, amount: 3, status: assumed, source: q, checked: 2026-07-01}\n"
    )
    assert said(COMPLETE.replace("        gpus: 1\n", own)) == [
        "pools.one.offerings: 1 of 1 prices have status assumed (q)"
    ]


def test_what_nobody_uses() -> None:
    extra = COMPLETE.replace(
        "data_sources:\n", "data_sources:\n  - {name: q, classification: public, residency: [DE], owner: o}\n"
    )
    extra = extra.replace("models:\n", 'models:\n  - {name: idle, versions: [{version: "1"}]}\n')
    assert said(extra) == ["data_sources.q: no project uses it", "models.idle: no pool offers it"]


def test_a_tenant_that_no_pool_serves() -> None:
    assert said(COMPLETE.replace("residency: [DE], foreign", "residency: [FR], foreign")) == [
        "tenants.t: no pool lies in its residency and is open to it"
    ]


def test_weights_that_the_registry_does_not_know() -> None:
    served = '        version: "1"\n        digest: sha256:aa'
    (line,) = said(COMPLETE.replace(served, '        version: "2"\n        digest: sha256:aa'))
    assert line == "pools.one.offerings.m: serves version '2'; the registry knows 1"
    (line,) = said(COMPLETE.replace(served, '        version: "1"\n        digest: sha256:bb'))
    assert line == "pools.one.offerings.m: serves weights sha256:bb, and the registry has sha256:aa"
