"""The log's short form of a workload loses nothing: what is written is read back whole."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.decide import Decision
from policyd.core.facts import Facts
from policyd.core.places import COUNTRIES, GROUPS
from policyd.core.sheet import Sheet
from policyd.core.workload import DecisionOptions, Workload
from policyd.services.answers import Made, Revisions, answer, entry_of, workload_from_record, workload_record

DIGEST = "sha256:" + 64 * "0"
SHEET = Sheet(DIGEST, b"{}", (), (), {}, {}, 0, False, False, {})
FACTS = Facts({}, {}, DIGEST)

NAMES = st.sampled_from(["a", "b", "true", "0"])
LISTS = st.sets(NAMES, max_size=3).map(lambda names: tuple(sorted(names)))
_SOME = st.sets(st.sampled_from(["DE", "FR", "US"]))
PLACES = st.one_of(st.sampled_from([COUNTRIES, *GROUPS.values()]), _SOME).map(lambda c: tuple(sorted(c)))
NUMBERS = st.sampled_from([0, 1, 256, 16_777_216])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
WORKLOADS = st.builds(
    Workload,
    scope=st.sampled_from(["request", "deployment"]),
    **dict.fromkeys(["tenant", "project", "environment", "model", "model_version"], NAMES),
    **dict.fromkeys(["urgency", "traffic", "task", "classification", "sla_class"], NAMES),
    **dict.fromkeys(["categories", "sources", "accelerators"], LISTS),
    **dict.fromkeys(["gpu_count", "gpu_memory_gib", "input_tokens", "max_output_tokens"], NUMBERS),
    requests_per_hour=NUMBERS,
    duration_hours=NUMBERS.filter(bool),  # a request names no fewer
    memory_bound=st.booleans(),
    permitted_countries=PLACES,
    labels=st.dictionaries(NAMES, TEXTS, max_size=3).map(lambda labels: tuple(sorted(labels.items()))),
)


@given(workload=WORKLOADS)
def test_a_recorded_workload_is_read_back_whole(workload: Workload) -> None:
    assert workload_from_record(orjson.loads(orjson.dumps(workload_record(workload)))) == workload


@given(workload=WORKLOADS)
def test_a_decision_is_recorded_and_answered_with_its_whole_workload(workload: Workload) -> None:
    made = Made(
        id="01890000-0000-7000-8000-000000000000",
        time_us=0,
        valid_until_us=1,
        principal="service:a",
        request_id="r",
        workload=workload,
        options=DecisionOptions(),
        sheet=SHEET,
        facts=FACTS,
        revisions=Revisions(None, "p", "regopy", None, "f", "c"),
        decision=Decision("deny", "policy", (), ()),
    )
    entry = entry_of(made)
    told = orjson.loads(entry.personal[0][1]).get("workload", {})
    expected = {**workload_record(workload), **told}
    assert {**orjson.loads(entry.body)["workload"], **told} == orjson.loads(orjson.dumps(expected))
    canonical = orjson.dumps(orjson.loads(entry.body), option=orjson.OPT_SORT_KEYS)
    assert entry.body == canonical
    assert orjson.dumps(workload.to_json()) in answer(made, None)
