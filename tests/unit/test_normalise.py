"""The caller cannot choose its law: floors hold, names exist, what is not said is the strictest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policyd.core.normalise import Normalised, normalise
from policyd.core.places import COUNTRIES, GROUPS, UnknownPlace, compact, expand
from policyd.core.principal import LOCAL, Grant, Principal
from policyd.core.terms import STRICTNESS, merge
from policyd.core.workload import CLASSIFICATION_ORDER, Classification, WorkloadRequest
from policyd.errors import Forbidden, Loosens, RequestError, UnknownName
from policyd.revisions.fleet_files import load_fleet

FLEET = load_fleet(Path(__file__).resolve().parents[2] / "examples" / "fleet")
BANK: dict[str, Any] = {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}
EU = tuple(sorted(GROUPS["EU"]))


def normal(document: dict[str, Any], principal: Principal = LOCAL) -> Normalised:
    return normalise(WorkloadRequest.model_validate(document), principal, FLEET)


def test_a_bare_request_takes_floors_and_defaults() -> None:
    workload = normal(BANK).workload
    assert workload.permitted_countries == EU
    assert CLASSIFICATION_ORDER[workload.classification] >= CLASSIFICATION_ORDER["confidential"]
    assert (workload.scope, workload.environment) == ("request", "prod")
    assert workload.sla_class in FLEET.tenants["eu-bank"].sla_classes


def test_no_classification_anywhere_means_the_strictest() -> None:
    tenant = FLEET.tenants["eu-bank"]
    unsaid = {"floors": tenant.floors.model_copy(update={"classification": None})}
    projects = tuple(
        project.model_copy(update={"floors": project.floors.model_copy(update={"classification": None}), "sources": ()})
        for project in tenant.projects
    )
    silent = tenant.model_copy(update={**unsaid, "projects": projects})
    document = FLEET.document.model_copy(update={"tenants": (silent,)})
    fleet = type(FLEET)(document, "sha256:none", groups=FLEET.groups)
    assert normalise(WorkloadRequest.model_validate(BANK), LOCAL, fleet).workload.classification == "restricted"


@pytest.mark.parametrize("level", ["public", "internal"])
def test_a_lower_classification_is_refused(level: str) -> None:
    with pytest.raises(Loosens, match="below the floor"):
        normal({**BANK, "data": {"classification": level}})


def test_a_higher_classification_is_taken() -> None:
    assert normal({**BANK, "data": {"classification": "restricted"}}).workload.classification == "restricted"


def with_map(**words: str) -> Any:
    """The example fleet with a company's own words."""
    given = {word: Classification(meant) for word, meant in words.items()}
    document = FLEET.document.model_copy(update={"classification_map": given})
    return type(FLEET)(document, "sha256:mapped", groups=FLEET.groups)


def test_a_company_word_means_what_the_fleet_says_and_is_recorded_as_ours() -> None:
    fleet = with_map(C1="internal", C2="confidential", C3="restricted")

    def classified(word: str) -> str:
        asked = WorkloadRequest.model_validate({**BANK, "data": {"classification": word}})
        return normalise(asked, LOCAL, fleet).workload.to_json()["data"]["classification"]

    assert (classified("C2"), classified("C3"), classified("restricted")) == (
        "confidential",
        "restricted",
        "restricted",
    )
    with pytest.raises(Loosens, match="'C1' is below the floor 'confidential'"):
        classified("C1")


@pytest.mark.parametrize(
    ("word", "nearest"), [("C33", "C3"), ("c3", "C3"), ("restrict", "restricted"), ("Confidential", "confidential")]
)
def test_an_unknown_word_is_refused_with_the_nearest(word: str, nearest: str) -> None:
    asked = WorkloadRequest.model_validate({**BANK, "data": {"classification": word}})
    with pytest.raises(UnknownName, match=f"unknown classification '{word}'; did you mean '{nearest}'"):
        normalise(asked, LOCAL, with_map(C3="restricted"))


def test_without_a_map_there_are_only_our_words() -> None:
    with pytest.raises(UnknownName, match="unknown classification 'C3'"):
        normal({**BANK, "data": {"classification": "C3"}})


def test_residency_intersects() -> None:
    assert normal({**BANK, "data": {"residency": ["EEA"]}}).workload.permitted_countries == EU
    assert normal({**BANK, "data": {"residency": ["FR", "DE"]}}).workload.permitted_countries == ("DE", "FR")


@pytest.mark.parametrize("residency", [["US"], ["EU", "US"], ["GB"]])
def test_residency_outside_the_floor_is_refused(residency: list[str]) -> None:
    with pytest.raises(Loosens, match="outside"):
        normal({**BANK, "data": {"residency": residency}})


def test_categories_unite() -> None:
    floor = set(normal(BANK).workload.categories)
    with_health = set(normal({**BANK, "data": {"categories": ["health"]}}).workload.categories)
    assert with_health == floor | {"health"}


def test_sources_that_are_not_named_are_all_in_use() -> None:
    project = FLEET.tenants["eu-bank"].project("support-chat")
    assert project is not None
    assert project.sources
    assert normal(BANK).workload.sources == tuple(sorted(project.sources))
    assert normal({**BANK, "data": {"sources": []}}) == normal(BANK)


def test_a_source_of_another_project_is_forbidden() -> None:
    with pytest.raises(Forbidden, match="may not use data source"):
        normal({**BANK, "data": {"sources": ["bank-transactions"]}})


@pytest.mark.parametrize("name", ["clinical-records", "clinical-recrds", "nowhere"])
def test_a_source_of_another_tenant_does_not_exist(name: str) -> None:
    with pytest.raises(UnknownName, match=f"^unknown data source '{name}'$"):
        normal({**BANK, "data": {"sources": [name]}})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"tenant": "eu-bnk"}, UnknownName, "did you mean 'eu-bank'"),
        ({"model": "llama"}, UnknownName, "did you mean 'llama-3.1-"),
        ({"data": {"residency": ["UK"]}}, UnknownName, "did you mean GB"),
        ({"project": "support-chta"}, UnknownName, "did you mean 'support-chat'"),
        ({"model": "llama-3.1-70b-instrct"}, UnknownName, "did you mean 'llama-3.1-70b-instruct'"),
        ({"model_version": "2042-01"}, UnknownName, "version"),
        ({"sla_class": "realtme"}, UnknownName, "did you mean 'realtime'"),
        ({"sla_class": "best-effort"}, Loosens, "not open"),
        ({"environment": "experiment"}, Forbidden, "no environment"),
        ({"data": {"residency": ["UK"]}}, UnknownName, "ISO 3166"),
        ({"data": {"sources": ["bank-crn"]}}, UnknownName, "did you mean 'bank-crm'"),
    ],
)
def test_names_exist_and_are_permitted(change: dict[str, Any], error: type[RequestError], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        normal({**BANK, **change})
    assert raised.value.findings or error is Forbidden


def test_an_identity_of_one_tenant_need_not_name_it_and_may_not_name_another() -> None:
    bank = Principal("svc-bank", (Grant("developer", "eu-bank"),))
    assert normal({"model": BANK["model"]}, bank).workload.tenant == "eu-bank"
    with pytest.raises(Forbidden):
        normal({**BANK, "tenant": "st-anna-hospital", "project": "clinical-rag"}, bank)
    with pytest.raises(Forbidden):  # and it does not learn whether such a tenant exists
        normal({**BANK, "tenant": "no-such-tenant"}, bank)


def test_an_identity_of_all_tenants_must_name_one() -> None:
    with pytest.raises(RequestError, match="name one"):
        normal({"model": BANK["model"]})


@pytest.mark.parametrize(
    "document",
    [
        {**BANK, "demand": {"input_tokens": -1}},
        {**BANK, "demand": {"input_tokens": 10**18}},
        {**BANK, "demand": {"input_tokens": 1.5}},
        {**BANK, "demand": {"input_tokens": "100"}},
        {**BANK, "demand": {"input_tokens": True}},
        {**BANK, "resources": {"gpu_count": 0}},
        {**BANK, "tenant": "\u0435u-bank"},  # a Cyrillic letter
        {**BANK, "tenant": "eu-bank\n"},
        {**BANK, "tenant": ""},
        {**BANK, "colour": "red"},
        {**BANK, "profile": {"urgency": "soon"}},
        {**BANK, "labels": {"a": "x" * 100_000}},
    ],
)
def test_what_is_not_of_the_contract_is_refused_before_names_are_looked_up(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WorkloadRequest.model_validate(document)


def test_hourly_figures_give_the_mean_rate() -> None:
    assert normal({**BANK, "demand": {"hourly": [0] * 167 + [1_000]}}).workload.requests_per_hour == 6


@given(st.data())
def test_a_project_never_loosens_its_tenant(data: st.DataObject) -> None:
    tenant = data.draw(st.sampled_from(list(FLEET.tenants.values())))
    floors = {name: data.draw(st.sampled_from([None, *order])) for name, order in STRICTNESS.items()}
    countries = data.draw(st.lists(st.sampled_from(sorted(COUNTRIES)), min_size=1, max_size=5))
    project = tenant.projects[0]
    changed = project.model_copy(
        update={"floors": project.floors.model_copy(update={**floors, "residency": tuple(countries)})}
    )
    alone, both = (
        merge(FLEET, tenant, project.model_copy(update={"floors": type(project.floors)()}), ()),
        merge(FLEET, tenant, changed, ()),
    )
    assert both.countries <= alone.countries
    assert set(both.permitted_seats) <= set(alone.permitted_seats)
    assert both.max_retention_days <= alone.max_retention_days
    assert both.training_allowed <= alone.training_allowed
    for name, order in STRICTNESS.items():
        before, after = getattr(alone, name), getattr(both, name)
        assert before is None or order[after] >= order[before]


@given(st.sets(st.sampled_from(sorted(COUNTRIES))))
def test_compact_says_the_same_countries(countries: set[str]) -> None:
    assert expand(compact(countries)) == countries


def test_groups_are_what_they_say() -> None:
    assert compact(GROUPS["EU"]) == ["EU"]
    assert len(GROUPS["EU"]) == 27
    assert GROUPS["EU"] < GROUPS["EEA"] < GROUPS["EU+adequate"] < GROUPS["WORLD"]
    assert "US" not in GROUPS["EU+adequate"]
    with pytest.raises(UnknownPlace, match="did you mean"):
        expand(["Eu"])
