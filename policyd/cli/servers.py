"""Asking a running policyd over HTTP: the same answers and errors as without it, by ``policyd.client``.

Rules: nothing is retried, since a person sees the error and decides; credentials are files, never flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyd.cli.decision_tables import Told
    from policyd.cli.options import Access
    from policyd.client import Client, Decision
    from policyd.core.workload import DecisionRequest

TIMEOUT_S: Final = 30.0


def server_at(access: Access) -> Client:
    """A client of the server that is named."""
    from policyd.client import Client

    return Client(access.address or "", token_file=access.token_file, ca_file=access.ca_file, timeout_s=TIMEOUT_S)


def decided_by(server: Client, request: DecisionRequest) -> tuple[Decision, Told]:
    """A decision that a server made, and what is told of it: its explanation, as the server gives it."""
    from policyd.cli.decision_tables import told_from

    asked = request.model_dump(mode="json", exclude_none=True)
    answer = server.decide(asked["workload"], asked["options"])
    return answer, told_from(server.explanation(answer["id"]))
