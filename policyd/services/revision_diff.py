"""What changed between two revisions, in the words of those who wrote them: rules and rows, pools and prices.

    policies   rules by package and id, what modules share, tests, data by path, the model and rows of Casbin
    fleet      pools, models, tenants, … by name, and in each the fields that are others, by their path

Rules: pure; text that only moved, and comments, are no change of a rule; every change has a place to open. It does not
judge: what a change does to decisions is found by ``policyd.services.impact_run``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import orjson

from policyd.core.fleet import Fleet
from policyd.documents import read_yaml
from policyd.engines.metadata import describe
from policyd.engines.source import Source, read_source
from policyd.ports import PolicyTree

How = Literal["added", "removed", "changed"]
CASBIN_ROWS: Final = "casbin/rows.csv"
CASBIN_MODEL: Final = "casbin/model.conf"
SHOWN_MAX_CHARACTERS: Final = 300
_NAMES: Final = ("id", "name", "path")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is another: ``what`` it is (rule, row, pool, …), its name, the field in it, before and after."""

    what: str
    name: str
    how: How
    field: str = ""
    before: str = ""
    after: str = ""
    where: str = ""

    def to_json(self) -> dict[str, str]:
        """Without what is empty."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in found.items() if value}


def policy_changes(before: PolicyTree, after: PolicyTree) -> list[Change]:
    """The changes of a policy tree."""
    found = [
        *_rules(before.modules, after.modules),
        *_texts("test", before.tests, after.tests),
        *_data(before.data, after.data),
    ]
    if before.casbin_model != after.casbin_model:
        found.append(Change("entitlement model", CASBIN_MODEL, "changed", where=CASBIN_MODEL))
    old, new = _rows(before.casbin_rows), _rows(after.casbin_rows)
    found += [Change("entitlement", row, "removed", where=f"{CASBIN_ROWS}:{old[row]}") for row in old if row not in new]
    found += [Change("entitlement", row, "added", where=f"{CASBIN_ROWS}:{new[row]}") for row in new if row not in old]
    return found


def fleet_changes(before: Fleet, after: Fleet) -> list[Change]:
    """The changes of a fleet."""
    old, new = (each.document.model_dump(mode="json", exclude_none=True) for each in (before, after))
    found: list[Change] = []
    for section in new.keys() | old.keys():
        was, becomes = _named(old.get(section)), _named(new.get(section))
        what = section.removesuffix("s").replace("_", " ").replace("sla classe", "SLA class")
        for name in sorted(was.keys() | becomes.keys()):
            if name not in becomes:
                found.append(Change(what, name, "removed"))
            elif name not in was:
                found.append(Change(what, name, "added"))
            else:
                found += [
                    Change(what, name, "changed", field, _shown(one), _shown(other))
                    for field, one, other in _fields(was[name], becomes[name], "")
                ]
    return sorted(found, key=lambda change: (change.what, change.name, change.field))


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule as policies describe it, and the code that it stands on, without comments."""

    where: str
    title: str
    enforcement: str
    remedy: str
    code: str


def _rules(before: Mapping[PurePosixPath, str], after: Mapping[PurePosixPath, str]) -> Iterator[Change]:
    old, new = _described(before), _described(after)
    for name in sorted(old.keys() | new.keys()):
        was, becomes = old.get(name), new.get(name)
        if becomes is None and was is not None:
            yield Change("rule", name, "removed", before=was.enforcement, where=was.where)
        elif was is None and becomes is not None:
            yield Change("rule", name, "added", after=becomes.enforcement, where=becomes.where)
        elif was is not None and becomes is not None:
            for field in ("enforcement", "title", "remedy"):
                one, other = getattr(was, field), getattr(becomes, field)
                if one != other:
                    yield Change("rule", name, "changed", field, one, other, becomes.where)
            if was.code != becomes.code:
                yield Change("rule", name, "changed", "code", where=becomes.where)
    yield from _rest(before, after)


def _described(modules: Mapping[PurePosixPath, str]) -> dict[str, _Rule]:
    found: dict[str, _Rule] = {}
    for path, text in modules.items():
        source = read_source(text)
        package, _ = describe(str(path), source)
        if package is None:
            continue
        for rule in package.rules.values():
            line = int(rule.location.rpartition(":")[2] or 0)
            code = " ".join(token.text for each in source.rules if each.line == line for token in each.tokens)
            found[f"{package.name}.{rule.rule}"] = _Rule(
                rule.location, rule.title, rule.enforcement.value, rule.remedy, code
            )
    return found


def _rest(before: Mapping[PurePosixPath, str], after: Mapping[PurePosixPath, str]) -> Iterator[Change]:
    """What the rules of a module share: its helpers, what it imports, what it prefers and obliges to."""
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            yield Change("module", str(path), "removed", where=str(path))
        elif path not in before:
            yield Change("module", str(path), "added", where=str(path))
        else:
            one, other = (_shared(read_source(each[path])) for each in (before, after))
            for name in sorted(one.keys() | other.keys()):
                if one.get(name) != other.get(name):
                    how: How = "removed" if name not in other else "added" if name not in one else "changed"
                    yield Change("helper", f"{path.stem}.{name}", how, where=str(path))


def _shared(source: Source) -> dict[str, str]:
    found: dict[str, str] = {}
    for rule in source.rules:
        if rule.name not in ("deny", "warn", "approval"):
            found[rule.name] = found.get(rule.name, "") + "\n" + " ".join(token.text for token in rule.tokens)
    return found


def _texts(what: str, before: Mapping[PurePosixPath, str], after: Mapping[PurePosixPath, str]) -> Iterator[Change]:
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            how: How = "removed" if path not in after else "added" if path not in before else "changed"
            yield Change(what, str(path), how, where=str(path))


def _data(before: Mapping[PurePosixPath, str], after: Mapping[PurePosixPath, str]) -> Iterator[Change]:
    for path in sorted(before.keys() & after.keys()):
        one, other = (read_yaml(each[path].encode(), str(path)).value for each in (before, after))
        for field, was, becomes in _fields(one, other, ""):
            yield Change("data", str(path), "changed", field, _shown(was), _shown(becomes), str(path))
    only = {path: text for path, text in before.items() if path not in after}
    yield from _texts("data", only, {path: text for path, text in after.items() if path not in before})


def _rows(text: str) -> dict[str, int]:
    """Every row of Casbin with its line."""
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return {
        ", ".join(value.strip() for value in line.split(",")): number
        for number, line in lines
        if line and not line.startswith("#")
    }


def _named(section: Any) -> dict[str, Any]:
    """The things of a section by name."""
    if isinstance(section, dict):
        return {str(name): value for name, value in section.items()}
    found: dict[str, Any] = {}
    for number, thing in enumerate(section or ()):
        name = next((str(thing[key]) for key in _NAMES if isinstance(thing, dict) and key in thing), None)
        if name is None and isinstance(thing, dict) and "model" in thing:
            name = " ".join(str(thing[key]) for key in ("model", "accelerator", "gpus") if key in thing)
        found[name if name is not None and name not in found else f"{name or ''}#{number + 1}"] = thing
    return found


def _fields(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The paths that differ, with both values; None is a value that is not there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _fields(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif _of_things(before) and _of_things(after):
        yield from _fields(_named(before), _named(after), path)
    elif before != after:
        yield path, before, after


def _of_things(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _shown(value: Any) -> str:
    """A value on one line, cut where it is long."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= SHOWN_MAX_CHARACTERS else text[: SHOWN_MAX_CHARACTERS - 1] + "…"
