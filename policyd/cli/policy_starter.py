"""A policy tree to start from: small enough to read in a minute, whole enough to be checked, tested and served.

Rules: nothing that is there is ever overwritten; the model of the entitlements is the shipped one, for no other is
taken; what is written passes ``policyd policy check`` and ``policyd policy test`` beside the example fleet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from policyd.errors import ConfigError

_PACKAGE: Final = """\
# METADATA
# title: Data stays in the countries that it is permitted in
# custom:
#   enforcement: hard
#   owner: data-protection
#   remedy: choose a pool whose every location is permitted
package placement.countries

deny contains violation if {
	some aspect, countries in input.pool.locations
	some country in countries
	not country in input.workload.data.permitted_countries
	violation := {
		"rule": "country_not_permitted",
		"observed": {aspect: country},
		"required": input.workload.data.permitted_countries,
	}
}
"""
_TEST: Final = """\
package placement.countries_test

import data.placement.countries

denied(where) := deny if {
	deny := countries.deny with input.pool as {"locations": {"processing": where}}
		with input.workload as {"data": {"permitted_countries": ["DE", "FR"]}}
}

test_a_permitted_country_is_quiet if denied(["DE"]) == set()

test_another_country_is_refused if {
	denied(["US"]) == {{
		"rule": "country_not_permitted",
		"observed": {"processing": "US"},
		"required": ["DE", "FR"],
	}}
}
"""
_CASE: Final = """\
countries:
  - name: the bank's chat leaves the EU for nobody
    why: Its data is permitted in EU countries only.
    workload: {tenant: eu-bank, project: support-chat, model: llama-3.1-70b-instruct}
    now: "2026-11-23T18:00:00Z"
    pools: [aws-us-east-1-h100]
    expect:
      outcome: deny
      rejected: {aws-us-east-1-h100: [country_not_permitted, not_entitled]}
"""
_SETTINGS: Final = """\
# What rules read as data.settings.
settings: {}
"""
_README: Final = """\
# Policies

One folder a package: `<name>/<name>.rego` with its METADATA, and `<name>/<name>_test.rego`. `casbin/rows.csv` says
which tenant may see and use which group of pools; `cases/` holds decisions that somebody relies on.

    policyd policy check .
    policyd policy test . --engine all --coverage 100
"""
_ROWS: Final = """\
# p rows: subject or role, domain (a tenant, or * for all), object, action, effect. g rows: subject, role, domain.
p, market, *, hyperscale-us, view, allow
g, tenant:eu-bank, market, eu-bank

# Whoever reaches a server without authentication, on loopback only.
p, local, *, decisions, decide, allow
p, local, *, decisions, simulate, allow
p, local, *, decisions, read, allow
p, local, *, fleet, read, allow
p, local, *, audit, read, allow
"""


def write_starter(directory: Path) -> Iterator[Path]:
    """Write the files, and name each. Raises ``ConfigError`` when the folder holds something, or cannot be made."""
    from policyd.bootstrap import shipped

    files = {
        "README.md": _README,
        "settings.yaml": _SETTINGS,
        "countries/countries.rego": _PACKAGE,
        "countries/countries_test.rego": _TEST,
        "cases/countries.yaml": _CASE,
        "casbin/model.conf": (shipped("policies") / "casbin" / "model.conf").read_text(encoding="utf-8"),
        "casbin/rows.csv": _ROWS,
    }
    try:
        if directory.exists() and any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty, and nothing in it is overwritten")
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            yield path
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from None
