"""The actions that take two persons: one row each. To add one: a row here, and rows of Casbin for its object.

Rules: whoever proposes needs the permission ``propose`` (of a waiver ``request``) on the action's object, whoever
approves ``approve``, each in
the tenant that the action concerns, or in all when it concerns none; ``local`` has neither, whatever the rows say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from policyd.services import erasures, holds, waiver_rows
from policyd.services.proposals import Perform, PerformAlone


@dataclass(frozen=True, slots=True)
class Action:
    """What two persons can do. ``obj`` is the object of Casbin; ``perform`` does it in the writer's transaction, and is
    None for what only the ledger of that writer can do; ``asking`` is the permission of whoever proposes."""

    name: str
    obj: str
    perform: Perform | None
    asking: str = "propose"


BUDGET_SET: Final = "budget.set"
WAIVER: Final = "waiver"
BREAK_GLASS: Final = "waiver.break_glass"
_ROWS: Final = (
    Action("hold.place", "holds", holds.place),
    Action("hold.lift", "holds", holds.lift),
    Action("erasure", "erasures", erasures.erase),
    Action(BUDGET_SET, "budgets", None),
    Action(WAIVER, "waivers", waiver_rows.grant, asking="request"),
)
ACTIONS: Final[Mapping[str, Action]] = {action.name: action for action in _ROWS}
PERFORM: Final[Mapping[str, Perform]] = {action.name: action.perform for action in _ROWS if action.perform is not None}
ALONE: Final[Mapping[str, PerformAlone]] = {BREAK_GLASS: waiver_rows.break_glass}
"""What one person does alone, with a permission of its own."""
