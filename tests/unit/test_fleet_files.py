"""Fleet files: what merges, what is refused, and that every finding names its line in a person's words."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path, PurePosixPath

import pytest

from policyd.core.fleet import Fleet
from policyd.errors import FleetInvalid
from policyd.revisions import fleet_files
from policyd.revisions.fleet_files import load_fleet, parse_fleet

MODELS = """\
models:
  - name: llama
    versions:
      - {version: "1", digest: "sha256:00", approved_in: [prod]}
"""
POOL = """\
pools:
  - id: one
    kind: on_demand
    group: g
    provider: p
    region: r
"""


def fleet(files: Mapping[str, str | bytes] | str) -> Fleet:
    named = {"f.yaml": files} if isinstance(files, str) else files
    contents = {PurePosixPath(name): text.encode() if isinstance(text, str) else text for name, text in named.items()}
    return parse_fleet(contents)


def told(files: Mapping[str, str | bytes] | str) -> list[str]:
    with pytest.raises(FleetInvalid) as caught:
        fleet(files)
    assert caught.value.findings, "an invalid fleet says why"
    return [str(finding) for finding in caught.value.findings]


def test_files_are_merged_and_digested() -> None:
    first = {"a.yaml": POOL, "b.yaml": MODELS, "c/d.yaml": POOL.replace("one", "two")}
    loaded = fleet(first)
    assert list(loaded.pools) == ["one", "two"]
    assert loaded.commit is None
    assert loaded.digest == fleet(dict(reversed(first.items()))).digest
    assert loaded.digest != fleet({**first, "b.yaml": MODELS + "# a comment\n"}).digest


def test_facts_that_nobody_declared_stay_unknown() -> None:
    pool = fleet(POOL).pools["one"]
    assert pool.retention_days is None
    assert pool.sub_processors is None
    assert pool.price is None


def test_pool_defaults_merge_into_the_pools_of_their_own_file() -> None:
    here = """\
pool_defaults:
  kind: spot
  group: g
  provider: p
  region: r
  retention_days: 0
  certifications: [{name: SOC2, expires: 2027-01-01}]
  operator: {name: Op, seat: DE, parent_seat: DE}
  price: {unit: gpu_hour, status: list, source: s, checked: 2026-07-01}
pools:
  - id: plain
    price: {amount: "2.50"}
  - id: own
    kind: on_demand
    retention_days: null
    certifications: []
    operator: {parent_seat: US}
    price: {amount: 3, status: assumed}
"""
    loaded = fleet({"here.yaml": here, "there.yaml": POOL})
    plain, own, other = loaded.pools["plain"], loaded.pools["own"], loaded.pools["one"]
    assert (plain.kind, plain.retention_days, plain.operator.parent_seat) == ("spot", 0, "DE")
    assert plain.price is not None
    assert plain.price.amount == Decimal("2.50")
    assert (own.kind, own.retention_days, own.certifications) == ("on_demand", None, ())
    assert (own.operator.name, own.operator.seat, own.operator.parent_seat) == ("Op", "DE", "US")
    assert own.price is not None
    assert (own.price.status, own.price.unit) == ("assumed", "gpu_hour")
    assert other.retention_days is None


def test_a_fault_in_pool_defaults_points_at_the_defaults() -> None:
    text = "pool_defaults:\n  tenancy: communal\npools:\n  - {id: a, kind: spot, group: g, provider: p, region: r}\n"
    assert told(text) == [
        "f.yaml:2: `pools[a].tenancy` is 'communal'; use one of dedicated, single_tenant, shared",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool_defaults: [1]\npools: []\n", "f.yaml:1: `pool_defaults` is a mapping"),
        ("pool_defaults: {kind: spot}\n", "f.yaml:1: `pool_defaults` stands in a file without pools"),
        ("pool_defaults:\n  id: x\npools: [{}]\n", "f.yaml:2: `pool_defaults.id`: a pool states its own id"),
    ],
)
def test_pool_defaults_that_mean_nothing(text: str, message: str) -> None:
    assert message in told(text)


def test_unknown_key_names_the_nearest_one_at_its_line() -> None:
    assert told(POOL + "    tenency: shared\n") == [
        "f.yaml:7: unknown key `pools[one].tenency`; did you mean `tenancy`?"
    ]
    deep = POOL + "    locations:\n      processing: [DE]\n      storge: [DE]\n"
    assert told(deep) == ["f.yaml:9: unknown key `pools[one].locations.storge`; did you mean `storage`?"]
    assert told("pool:\n" + POOL) == ["f.yaml:1: unknown key `pool`; did you mean `pools`?"]


def test_unknown_value_lists_the_allowed_ones() -> None:
    assert told(POOL.replace("on_demand", "on-demand")) == [
        "f.yaml:3: `pools[one].kind` is 'on-demand'; use one of on_prem, committed, on_demand, spot, serverless, api;"
        " did you mean `on_demand`?"
    ]


def test_missing_key_points_at_the_item() -> None:
    assert told(POOL.replace("    region: r\n", "")) == ["f.yaml:2: `pools[one].region` is missing"]


def test_unknown_country_says_what_to_write() -> None:
    (line,) = told(POOL + "    locations:\n      processing: [DE]\n      storage: [UK]\n")
    assert line.startswith("f.yaml:9: `pools[one].locations.storage[0]`: unknown country 'UK'")
    assert "GB" in line


def test_money_must_be_exact() -> None:
    price = "    price: {unit: gpu_hour, amount: %s, status: list, source: s, checked: 2026-07-01}\n"
    for wrong in ("88.49", "1e999", ".nan", ".inf", "-.inf"):
        (line,) = told(POOL + price % wrong)
        assert line.startswith("f.yaml:7: ")
        assert "quoted decimal" in line
    for wrong in ("'1e5'", "'-1'", "'NaN'", "'Infinity'", "''", "'٣'", "true", "'99999999999999999999'", "-3"):
        assert all(line.startswith("f.yaml:7: `pools[one].price.amount`") for line in told(POOL + price % wrong))
    assert fleet(POOL + price % "'88.49'").pools["one"].price is not None


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ("unit: gpu_hour, input: '1', output: '1'", "a price per gpu_hour has `amount`"),
        ("unit: million_tokens, amount: '1'", "a price per million_tokens has `input` and `output`"),
        ("unit: instance_hour, amount: '88'", "`gpus_per_instance` belongs to a price per instance_hour"),
        (
            "unit: gpu_hour, amount: '88', gpus_per_instance: 8",
            "`gpus_per_instance` belongs to a price per instance_hour",
        ),
        ("unit: gpu_second, amount: '1', vcpus: 8", "`vcpu_second` and `vcpus` stand together"),
        ("unit: gpu_second, amount: '1', gib_second: '0.1'", "`gib_second` and `ram_gib` stand together"),
    ],
)
def test_prices_state_what_their_unit_needs(price: str, message: str) -> None:
    (line,) = told(POOL + f"    price: {{{price}, status: list, source: s, checked: 2026-07-01}}\n")
    assert line.startswith(f"f.yaml:7: `pools[one].price`: {message}")


def test_dates_are_dates() -> None:
    evidence = "    evidence: {checked: %s}\n"
    assert str(fleet(POOL + evidence % "2026-07-01").pools["one"].evidence.checked) == "2026-07-01"
    for wrong in ("2026-13-01", "2026-07-01T10:00:00Z", "yesterday", "20260701"):
        assert told(POOL + evidence % wrong)[0].startswith("f.yaml:7: `pools[one].evidence.checked`")


def test_all_faults_come_at_once_sorted_by_line() -> None:
    text = POOL.replace("kind: on_demand", "kind: ondemand") + "    trains_on_data: maybe\n    colour: red\n"
    more = "models:\n  - name: m\n    versions: []\n"
    lines = told({"a.yaml": text, "b.yaml": more, "c.yaml": "pools:\n  - [1]\n", "d.yaml": "{"})
    assert [line.split(" ")[0] for line in lines] == [
        "a.yaml:3:",
        "a.yaml:7:",
        "a.yaml:8:",
        "b.yaml:3:",
        "c.yaml:2:",
        "d.yaml:1:",
    ]


def test_names_are_checked_beside_faults_of_shape() -> None:
    text = POOL + "    offerings: [{model: gone}, {model: llama}]\n  - {id: two}\n" + POOL[7:]
    lines = told({"f.yaml": text, "m.yaml": MODELS.replace("name: llama", "name: llama\n    colour: red")})
    assert "f.yaml:7: `pools[one].offerings[0].model`: unknown model 'gone'" in lines
    assert any(line.startswith("f.yaml:9: ") and "'one' is declared twice" in line for line in lines)
    assert not any("unknown model 'llama'" in line for line in lines), "a model with a fault is still declared"


def test_dangling_names_and_duplicates() -> None:
    text = POOL + "    offerings:\n      - model: lama\n    dedicated_to: [nobody]\n" + POOL[7:] + MODELS
    lines = told(text)
    assert "f.yaml:8: `pools[one].offerings[0].model`: unknown model 'lama'" in lines
    assert "f.yaml:9: `pools[one].dedicated_to[0]`: unknown tenant 'nobody'" in lines
    assert "f.yaml:10: `pools[one]`: 'one' is declared twice" in lines


def test_a_tenant_states_every_floor_and_only_known_places() -> None:
    text = """\
sla_classes:
  - {name: std, ttft_p95_ms: 1, ttft_p99_ms: 1, stream_tokens_per_s: 1, availability_ppm: 1, cold_start_allowed: true,
     contention_allowed: true, interruption_allowed: true,
     weights: {control: 1000, availability: 0, price: 0, latency: 0, preference: 0}}
tenants:
  - name: t
    title: T
    seat: DE
    sector: other
    zone: Europe/Berlim
    floors: {residency: [EUU], permitted_seats: [EU]}
    sla_classes: [std, gold]
    projects: [{name: p, environments: [prod], sources: [nowhere]}]
place_groups:
  EU: [DE]
  NORTH: [DE, XX]
"""
    (zone,) = [line for line in told(text) if "zone" in line]
    assert zone.startswith("f.yaml:10: ")
    assert "IANA" in zone
    lines = told(text.replace("Berlim", "Berlin"))
    assert any(line.startswith("f.yaml:11: ") and "does not state its floor 'tenancy'" in line for line in lines)
    assert any(line.startswith("f.yaml:11: ") and "'EUU'" in line and "did you mean EU" in line for line in lines)
    assert any(line.startswith("f.yaml:12: ") and "unknown SLA class 'gold'" in line for line in lines)
    assert any(line.startswith("f.yaml:13: ") and "unknown data source 'nowhere'" in line for line in lines)
    assert any(line.startswith("f.yaml:15: ") and "cannot be redefined" in line for line in lines)
    assert any(line.startswith("f.yaml:16: ") and "'XX'" in line for line in lines)


def test_place_groups_of_the_fleet_are_groups() -> None:
    assert fleet("place_groups: {DACH: [DE, AT, CH]}\n").groups["DACH"] == {"DE", "AT", "CH"}


def test_a_classification_map_has_known_meanings_and_leaves_our_words_alone() -> None:
    words = fleet("classification_map: {C1: internal, C4: restricted}\n").classifications
    assert (words["C1"].value, words["C4"].value, words["public"].value) == ("internal", "restricted", "public")
    assert "cannot be redefined" in told("classification_map:\n  internal: public\n")[0]
    assert told("classification_map:\n  C1: secret\n")[0].startswith("f.yaml:2: ")
    assert (
        "stands already"
        in told({"a.yaml": "classification_map: {C1: public}\n", "b.yaml": "classification_map: {C1: internal}\n"})[0]
    )


def test_weights_that_do_not_add_up() -> None:
    text = """\
sla_classes:
  - name: std
    ttft_p95_ms: 1
    ttft_p99_ms: 1
    stream_tokens_per_s: 1
    availability_ppm: 1
    cold_start_allowed: true
    contention_allowed: true
    interruption_allowed: true
    weights: {control: 999, availability: 0, price: 0, latency: 0, preference: 0}
"""
    assert told(text) == ["f.yaml:10: `sla_classes[std].weights`: the weights add up to 999, not 1000"]


def test_what_stands_twice_in_two_files() -> None:
    assert told({"a.yaml": "defaults: {environment: dev}\n", "b.yaml": "\ndefaults: {environment: dev}\n"}) == [
        "b.yaml:2: `defaults` stands already at a.yaml:1"
    ]
    euro = 'currencies:\n  EUR: {usd: "1.1", source: s, checked: 2026-07-01}\n'
    assert told({"a.yaml": euro, "b.yaml": euro}) == ["b.yaml:2: `currencies.EUR` stands already at a.yaml:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f.yaml:1: the file is empty"),
        (b"# nothing\n", "f.yaml:1: the file is empty"),
        (b"- a\n", "f.yaml:1: the file holds no mapping"),
        (b"just text", "f.yaml:1: the file holds no mapping"),
        (b"\n\n\xff\xfe", "f.yaml:3: not UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "f.yaml:1: a character that YAML does not permit"),
        (b"pools:\n  - id: a\n   bad: [\n", "f.yaml:3: not YAML"),
        (b"pools: []\n---\npools: []\n", "f.yaml:2: not YAML"),
        (b"pools: {a: 1}\n", "f.yaml:1: `pools` is a list"),
        (b"currencies: []\n", "f.yaml:1: `currencies` is a mapping"),
        (b"pools: []\npools: []\n", "f.yaml:2: key 'pools' stands twice; the first one is in line 1"),
        (b"pools: !!python/object:os.system []\n", "f.yaml:1: tag"),
        (b"pools:\n  - <<: {id: a}\n", "f.yaml:2: merge keys"),
        (b"pools:\n  - 1: a\n", "f.yaml:2: a key is text"),
        (b"pools:\n  - [a, b]\n", "f.yaml:2: `pools[0]`: input should be an object"),
        (b"pools: &a\n  - *a\n", "f.yaml:1: nested deeper than 40 levels"),
        (b"[" * 50_000, "f.yaml:1: n"),
        (b"models:\n  - gpu: 99999999999999999\n", "f.yaml:2: 99999999999999999 is larger than"),
        (b"models:\n  - gpu: 0x10\n", "f.yaml:2: '0x10' is not a plain decimal integer"),
        (b'models:\n  - name: "\\ud800"\n', "f.yaml:2: not YAML: while parsing a quoted scalar found invalid Unicode"),
    ],
)
def test_broken_files_are_findings_and_never_a_trace(content: bytes, message: str) -> None:
    assert any(line.startswith(message) for line in told({"f.yaml": content})), told({"f.yaml": content})


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert any("values, aliases written out" in line for line in told("\n".join(lines)))


def test_more_pools_than_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_files, "MAX_POOLS", 1)
    assert told(POOL + "  - {id: b, kind: spot, group: g, provider: p, region: r}\n")[0].endswith("more than 1 pools")


def test_an_unquoted_country_no_is_norway() -> None:
    assert fleet(POOL + "    locations: {processing: [NO]}\n").pools["one"].locations.processing == ("NO",)


def test_load_names_files_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(POOL + "    tenency: x\n")
    for path in (tmp_path, tmp_path / "fleet.yaml"):
        with pytest.raises(FleetInvalid) as caught:
            load_fleet(path)
        assert caught.value.findings[0].where == f"{tmp_path}/fleet.yaml:7"
    with pytest.raises(FleetInvalid) as caught:
        load_fleet(tmp_path / "missing")
    assert caught.value.findings[0].message == "no such file or folder"
