"""Compiles a policy tree in a process of its own, for every engine.

The read sets, the list of built-ins and the static checks come from this one compilation, whichever engine evaluates
later. Rules: a tree that makes the compiler crash or hang costs one process and gives a finding; nothing of a failed
compilation is kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policyd.core.verdict import PolicySet
from policyd.engines.children import Worker, WorkerDied
from policyd.engines.compiler import Prepared, engine_findings, finish, prepare
from policyd.engines.plan import Plan, read_plan
from policyd.errors import EngineError, EngineTimeout, Finding, PolicyInvalid
from policyd.ports import PolicyTree

Modules = tuple[tuple[str, str], ...]
"""Path and text of each module, in a fixed order."""

COMPILE_TIMEOUT_S: Final = 30.0
COMPILE_MEMORY_BYTES: Final = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy set that passed every check, what it was made from, and the binary bundle of the embedded engine."""

    policies: PolicySet
    prepared: Prepared
    bundle: bytes


async def compile_tree(tree: PolicyTree, engine_name: str) -> Compiled:
    """Compile and check a tree. Raises ``PolicyInvalid`` with every finding, ``EngineError`` when no child starts."""
    prepared = prepare(tree)
    with tempfile.TemporaryDirectory(prefix="policyd-compile-") as directory:
        findings = list(prepared.findings)
        place = Path(directory)
        findings.extend(await build_bundle(prepared.modules, prepared.data, prepared.entrypoints, place))
        if not findings:
            policies, faults = finish(tree, prepared, plan_of(prepared.modules, place), engine_name)
            if not faults:
                return Compiled(policies, prepared, (place / "bundle").read_bytes())
            findings = faults
    raise PolicyInvalid(f"findings in the policies: {len(findings)}", findings=sorted(set(findings), key=str))


def _names(modules: Modules) -> dict[str, str]:
    """Names to compile modules under, to their paths: the engine keeps only the last part of a path."""
    return {f"m{index}.rego": path for index, (path, _) in enumerate(modules)}


def plan_of(modules: Modules, place: Path) -> Plan:
    """The plan that ``build_bundle`` left below ``place``. Raises ``EngineError`` when it has an unknown shape."""
    document = json.loads((place / "plan" / "plan.json").read_bytes())
    try:
        return read_plan(document, _names(modules))
    except (KeyError, TypeError) as fault:
        raise EngineError(f"the compiled plan has an unknown shape: {fault!r}") from fault


async def build_bundle(
    modules: Modules, data: Mapping[str, object], entrypoints: Sequence[str], place: Path
) -> list[Finding]:
    """Have a child write ``plan/plan.json`` and ``bundle`` below ``place``; the engine's faults as findings."""
    paths = _names(modules)
    texts = {name: text for name, (_, text) in zip(paths, modules, strict=True)}
    worker = await Worker.start(COMPILE_MEMORY_BYTES)
    reading = ""
    try:
        worker.send(
            {
                "do": "compile",
                "modules": list(texts.items()),
                "data": json.dumps(data, ensure_ascii=False),
                "entrypoints": entrypoints,
                "plan_directory": str(place / "plan"),
                "bundle": str(place / "bundle"),
            }
        )
        while "faults" not in (answer := await worker.answer(COMPILE_TIMEOUT_S)):
            reading = paths.get(answer["reading"], "")
    except WorkerDied:
        return [_fatal(reading, "the engine died")]
    except EngineTimeout:
        return [_fatal(reading, f"the engine did not end within {int(COMPILE_TIMEOUT_S)} s")]
    finally:
        await worker.kill()
    return engine_findings(texts, paths, [(name, message) for name, message in answer["faults"]])


def _fatal(reading: str, what: str) -> Finding:
    if reading:
        return Finding(f"{reading}:1", f"{what} while it read this file; simplify what was changed last")
    return Finding("", f"{what} while it compiled the policies; simplify what was changed last")
