"""Schemathesis asks every operation of docs/reference/openapi.json what it does not expect, on a real server.

A route is covered when it stands in that file, and ``test_api_reference.py`` sees that every route does. The examples
are the same in every run; ``--long`` asks more.

What a schema cannot say is excused, and nothing else. Valid data may be refused for a name that no fleet declares or a
key that came with another body (422), for a length that is a setting (413), and where each finding of the problem
document is about nothing else (400): a text that is no cursor or no such time, a tenant that the identity does not
settle, a whole number that is written with a fraction (``7.0``), one field of several that is needed, and what
AuthZEN's ``context`` and defaults leave open. Invalid data is refused within a 200 where a request holds several
questions, each of which fails for itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

DESCRIPTION: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "openapi.json"
EXAMPLES: Final = 40
EXAMPLES_LONG: Final = 600
OPAQUE: Final = frozenset({"cursor", "from", "to"})
UNSAYABLE: Final = re.compile(
    r"^required for this identity$|input should be a valid (integer|string) \(here -?\d+\.0\)$"
)

AUTHZEN: Final = re.compile(r"^(context|subject|action|resource|evaluations)\b")
BUDGETS: Final = re.compile(r"^limits\[\d+\](\.(zone|pools))?$")
"""A limit whose unit, window, pools and thresholds do not go together, or names that are in no list."""
ALTERNATIVES: Final = {
    "/v1/simulations": frozenset({"workloads", "overrides.time"}),
    "/v1/break-even": frozenset({"model", "hourly", "requests_per_hour", "input_tokens"}),
}
"""Fields of which one or another is needed, and a time of certain years."""
REFUSED: Final = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "429", "431"]

schema = schemathesis.openapi.from_path(
    DESCRIPTION,
    config=schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSED}}}),
)


SINGLE_JSON = re.compile(r"json\b")
"""One document, and not one a line."""


def excused(response: Any, path: str) -> bool:
    """Whether the refusal is about what no schema can say."""
    if response.status_code not in (400, 413, 422):
        return False
    told = response.json()
    if told["code"] in ("request.unknown_name", "request.key_reused", "request.too_large"):
        return True
    findings = told.get("findings", ())
    return bool(findings) and all(
        finding["where"] in OPAQUE
        or finding["where"] in ALTERNATIVES.get(path, ())
        or (path.startswith("/v1/budgets/") and BUDGETS.search(finding["where"]) is not None)
        or UNSAYABLE.search(finding["message"]) is not None
        or (path.startswith("/access/v1/") and AUTHZEN.search(finding["where"]) is not None)
        for finding in findings
    )


def fails_within(response: Any) -> bool:
    """Whether some of several questions failed, and none of the failed ones was allowed."""
    if response.status_code != 200 or not SINGLE_JSON.search(str(response.headers.get("content-type"))):
        return False
    told = response.json()
    failed = [item for item in told.get("items", ()) if item.get("status", 200) != 200]
    failed += [item for item in told.get("evaluations", ()) if "problem" in item.get("context", {})]
    return bool(failed) and all("decision" not in item or item["decision"] is False for item in failed)


def valid_data_is_accepted(context: CheckContext, response: Any, case: schemathesis.Case) -> bool | None:
    """Schemathesis' own check, less what is excused."""
    return None if excused(response, case.operation.path) else positive_data_acceptance(context, response, case)


def invalid_data_is_refused(context: CheckContext, response: Any, case: schemathesis.Case) -> bool | None:
    """Schemathesis' own check, less what fails within an answer."""
    return None if fails_within(response) else negative_data_rejection(context, response, case)


def ask(case: schemathesis.Case, api: Any) -> None:
    case.call_and_validate(
        base_url=api.address,
        excluded_checks=[positive_data_acceptance, negative_data_rejection],
        additional_checks=[valid_data_is_accepted, invalid_data_is_refused],
        timeout=30,
    )


def asking(examples: int) -> settings:
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


@schema.parametrize()
@asking(EXAMPLES)
def test_what_nobody_expects_is_answered_as_described(case: schemathesis.Case, api: Any) -> None:
    ask(case, api)


@pytest.mark.long
@schema.parametrize()
@asking(EXAMPLES_LONG)
def test_much_that_nobody_expects_is_answered_as_described(case: schemathesis.Case, api: Any) -> None:
    ask(case, api)
