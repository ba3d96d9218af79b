"""The one module that policyd adds to an OPA: it answers a batch of questions for every package in one round trip.

Rules: pure text; the policies themselves are loaded as they stand; every reply carries the digest that the module was
written for, so that an OPA with other policies, or with none, cannot answer in their name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from policyd.core.verdict import Package

DRIVER_PACKAGE: Final = "policyd_driver"
REPLY_PATH: Final = f"{DRIVER_PACKAGE}/reply"


def driver_module(digest: str, packages: Mapping[str, Package]) -> str:
    """The module for one policy set. ``reply`` is ``{"digest": …, "answers": {package: [exports, …]}}``.

    An undefined export is an empty list, any other a list of one value.
    """
    answers = "".join(_rule(package) for _, package in sorted(packages.items()))
    return f'package {DRIVER_PACKAGE}\n\nreply := {{"digest": {json.dumps(digest)}, "answers": answers}}\n\n{answers}'


def _rule(package: Package) -> str:
    exports = ", ".join(
        f"{json.dumps(export)}: [value | value := data.placement.{package.name}.{export} with input as question]"
        for export in sorted(package.exports)
    )
    name = json.dumps(package.name)
    return f"answers[{name}] := [exports | some question in input[{name}]; exports := {{{exports}}}]\n\n"


def batch_input(questions: Iterable[tuple[str, bytes]]) -> bytes:
    """The driver's input: questions by package, in order. The questions are JSON already and are not parsed again."""
    by_package: dict[str, list[bytes]] = {}
    for package, question in questions:
        by_package.setdefault(package, []).append(question)
    members = (json.dumps(name).encode() + b":[" + b",".join(items) + b"]" for name, items in by_package.items())
    return b"{" + b",".join(members) + b"}"
