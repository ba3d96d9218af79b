"""The description of simulations, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates. The request is described by the model that reads it, which its own
module adds.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

from policyd.api.openapi import ANSWER_EXAMPLE, REQUEST_EXAMPLE, content_of, problems_of, route


class SimulatedPair(BaseModel):
    """The answer of ``POST /v1/decisions`` with the mode `simulation`; of an error, `outcome: error` and `problem`."""

    today: dict[str, Any]
    simulated: dict[str, Any]


class SimulationDocument(BaseModel):
    """Answers in the order of the workloads."""

    items: list[SimulatedPair]
    no_pool_left: list[int] = Field(
        description="places of the workloads that have a pool today and none in the simulation"
    )


_NOT_LOGGED: Final[dict[str, Any]] = {**ANSWER_EXAMPLE, "mode": "simulation", "audit": None}

SIMULATE: Final = route(
    "both decisions of each workload",
    content_of("SimulationDocument", {"items": [{"today": _NOT_LOGGED, "simulated": _NOT_LOGGED}], "no_pool_left": []}),
    problems_of(400, 403, 413, 415, 422, 503),
    requestBody={
        "required": True,
        "content": content_of(
            "SimulationRequest",
            {"workloads": [REQUEST_EXAMPLE["workload"]], "overrides": {"without_providers": ["aws"]}},
        ),
    },
)
SIMULATION_SHOWN: Final[tuple[type[BaseModel], ...]] = (SimulationDocument,)
