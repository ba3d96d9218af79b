"""Who may do what: Casbin's RBAC with domains, indexed by domain, object and action, built aside and never changed.

Rules: names are compared exactly, a deny outweighs every allow, and what no row allows is refused. Only the domain
``*`` is special: such a row is copied to every domain of the fleet when the rows are read. Rows are handed to Casbin as
lists and never as text, so no name can smuggle a row in. The model may not be changed in its meaning, because the index
holds for this meaning only. An error while asking is an ``EngineError``, never an answer.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from casbin import FastEnforcer
from casbin.model import FastModel
from casbin.persist import Adapter

from policyd.errors import EngineError, Finding, PolicyInvalid
from policyd.ports import Denial

MODEL_PATH: Final = "casbin/model.conf"
ROWS_PATH: Final = "casbin/rows.csv"
EVERY_DOMAIN: Final = "*"
MAX_ROLE_DEPTH: Final = 9
"""Longest chain of roles; Casbin silently stops at ten."""

MEMO_LIMIT: Final = 200_000
"""Answers kept; only names that occur in rows get that far."""

_INDEX: Final = (1, 2, 3)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+-]*")
_MODEL: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "request_definition": {"r": frozenset({"sub,dom,obj,act"})},
    "policy_definition": {"p": frozenset({"sub,dom,obj,act,eft"})},
    "role_definition": {"g": frozenset({"_,_,_"})},
    "policy_effect": {"e": frozenset({"some(where(p.eft==allow))&&!some(where(p.eft==deny))"})},
    "matchers": {"m": frozenset({"g(r.sub,p.sub,r.dom)", "r.dom==p.dom", "r.obj==p.obj", "r.act==p.act"})},
}
_MODEL_TEXT: Final = """
[request_definition]
r = sub, dom, obj, act
[policy_definition]
p = sub, dom, obj, act, eft
[role_definition]
g = _, _, _
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = g(r.sub, p.sub, r.dom) && r.dom == p.dom && r.obj == p.obj && r.act == p.act
"""
_FIELDS: Final = {"p": ("subject", "domain", "object", "action", "effect"), "g": ("subject", "role", "domain")}
_DOMAIN_FIELD: Final = {"p": 1, "g": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One row as written: ``p`` or ``g``, its values, and its line."""

    section: str
    values: tuple[str, ...]
    line: int


class _Rows(Adapter):  # type: ignore[misc]  # casbin ships no types
    """Hands rows to Casbin as lists."""

    def __init__(self, rows: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
        self._rows = rows

    def load_policy(self, model: Any) -> None:
        """Fill the model's sections."""
        for section, rows in self._rows.items():
            for values in rows:
                model.model[section][section].policy.append(list(values))


class _Enforcer(FastEnforcer):  # type: ignore[misc]  # casbin ships no types
    """Casbin parses its matcher anew for every answer, which takes most of the time; here each text is parsed once."""

    def __init__(self, model: FastModel, rows: Adapter) -> None:
        self._parsed: dict[str, Any] = {}
        super().__init__(model, rows, enable_log=False, cache_key_order=list(_INDEX))

    def _get_expression(self, expr: str, functions: Any = None) -> Any:
        """The matcher with the functions of its first use, which ask the same roles: they are never changed."""
        if expr not in self._parsed:
            self._parsed[expr] = super()._get_expression(expr, functions)
        return self._parsed[expr]


class CasbinEntitlements:
    """``policyd.ports.Entitlements``. Immutable; may be asked from several threads."""

    def __init__(
        self,
        permissions: Sequence[tuple[str, ...]],
        grants: Sequence[tuple[str, ...]],
        digest: str,
        denials: Sequence[Denial] = (),
    ) -> None:
        self._digest = digest
        self._denials = tuple(denials)
        denied = [(*values[:4], "allow") for values in permissions if values[4] == "deny"]
        # The question that ``denies`` asks: the rows that deny, as if they allowed.
        self._denying = CasbinEntitlements(denied, grants, digest) if denied else None
        self._keys = frozenset(values[1:4] for values in permissions)
        self._subjects = frozenset(values[0] for values in (*permissions, *grants))
        self._lock = threading.Lock()
        self._memo: dict[tuple[str, str, str, str], bool] = {}
        model = FastModel(list(_INDEX))
        model.load_model_from_text(_MODEL_TEXT)
        rows = _Rows({"p": permissions, "g": grants})
        self._enforcer = _Enforcer(model, rows)

    @classmethod
    def build(cls, model: str, rows: str, *, domains: Iterable[str] = ()) -> CasbinEntitlements:
        """Read model and rows. ``domains`` are those that ``*`` stands for. Raises ``PolicyInvalid`` with findings."""
        findings = model_findings(model)
        parsed = rows_of(rows, findings)
        findings.extend(_role_findings(parsed))
        if findings:
            raise PolicyInvalid(f"{len(findings)} findings in the entitlements", findings=findings)
        expanded = _expand(parsed, sorted(set(domains)))
        text = json.dumps([model, expanded], separators=(",", ":"))
        digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        return cls(expanded["p"], expanded["g"], digest, _denials(parsed))

    @property
    def digest(self) -> str:
        """``sha256:…`` over the model and the rows as they apply."""
        return self._digest

    @property
    def denials(self) -> Sequence[Denial]:
        """The rows that deny, as written."""
        return self._denials

    def permits(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """True only when a row allows it and none denies it. Raises ``EngineError`` when Casbin fails."""
        asked = (subject, domain, obj, action)
        known = self._memo.get(asked)
        if known is not None:
            return known
        # Casbin asks its matcher about an empty row when a key has none, and remembers every name that it is asked
        # about; so what no row names is answered here.
        if subject not in self._subjects or (domain, obj, action) not in self._keys:
            return False
        with self._lock:
            try:
                answer = self._enforcer.enforce(*asked)
            except Exception as fault:
                raise EngineError(f"the entitlements cannot answer for {subject!r}: {fault}") from fault
            if type(answer) is not bool:
                raise EngineError(f"the entitlements gave {answer!r} for {subject!r}")
            if len(self._memo) >= MEMO_LIMIT:
                self._memo.clear()
            self._memo[asked] = answer
        return answer

    def denies(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """True when a row denies it to the subject or a role of it. Raises ``EngineError`` when Casbin fails."""
        return self._denying is not None and self._denying.permits(subject, domain, obj, action)


def model_findings(model: str) -> list[Finding]:
    """What differs from the one model whose index is sound; blanks and the order of the conditions do not matter."""
    findings: list[Finding] = []
    found: dict[str, dict[str, frozenset[str]]] = {}
    section = ""
    for number, line in enumerate(model.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
            if section not in _MODEL or section in found:
                findings.append(Finding(f"{MODEL_PATH}:{number}", f"the section [{section}] is unknown or given twice"))
            found.setdefault(section, {})
            continue
        key, equals, value = text.partition("=")
        key, compact = key.strip(), re.sub(r"\s+", "", value)
        parts = frozenset(compact.split("&&")) if section == "matchers" else frozenset({compact})
        wanted = _MODEL.get(section, {}).get(key)
        if not equals or wanted is None or key in found.get(section, {}):
            findings.append(Finding(f"{MODEL_PATH}:{number}", f"'{text}' is no definition that may stand here"))
        elif parts != wanted:
            findings.append(Finding(f"{MODEL_PATH}:{number}", f"'{key}' must be {' && '.join(sorted(wanted))}"))
        found.setdefault(section, {})[key] = parts
    findings.extend(
        Finding(f"{MODEL_PATH}:1", f"[{name}] has no definition '{key}'")
        for name, definitions in _MODEL.items()
        for key in definitions
        if key not in found.get(name, {})
    )
    return findings


def rows_of(text: str, findings: list[Finding]) -> list[Row]:
    """The rows of the file. Blank lines and lines that start with ``#`` are skipped; anything else must be a row."""
    rows: list[Row] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        where = f"{ROWS_PATH}:{number}"
        section, *values = [value.strip() for value in next(csv.reader([stripped], quoting=csv.QUOTE_NONE))]
        fields = _FIELDS.get(section)
        if fields is None:
            findings.append(Finding(where, f"'{section}' is no kind of row; known are p and g"))
            continue
        if len(values) != len(fields):
            findings.append(Finding(where, f"a {section} row has {len(fields)} values: {', '.join(fields)}"))
            continue
        faults = [fault for index in range(len(values)) if (fault := _value_fault(section, index, values[index]))]
        findings.extend(Finding(where, fault) for fault in faults)
        key = (section, *values)
        if key in seen:
            findings.append(Finding(where, f"the same row stands in line {seen[key]}"))
        elif not faults:
            rows.append(Row(section, tuple(values), number))
        seen.setdefault(key, number)
    return rows


def _value_fault(section: str, index: int, value: str) -> str | None:
    field = _FIELDS[section][index]
    if field == "effect":
        return None if value in ("allow", "deny") else f"the effect '{value}' is neither allow nor deny"
    if value == EVERY_DOMAIN and index == _DOMAIN_FIELD[section]:
        return None
    if EVERY_DOMAIN in value:
        return f"the {field} '{value}' holds a *; names are exact, and only a whole domain may be *"
    return None if _NAME.fullmatch(value) else f"the {field} '{value}' is no name (letters, digits and . : @ / + - _)"


def _denials(rows: Sequence[Row]) -> list[Denial]:
    roles = {row.values[1] for row in rows if row.section == "g"}
    denials = []
    for row in rows:
        if row.section == "p" and row.values[4] == "deny":
            subject, domain, obj, action, _ = row.values
            denials.append(Denial(f"{ROWS_PATH}:{row.line}", subject, domain, obj, action, subject in roles))
    return denials


def _role_findings(rows: Sequence[Row]) -> list[Finding]:
    """Roles that give nothing (most often a slip of the pen), circles, and chains that Casbin would cut off."""
    findings: list[Finding] = []
    holders = {row.values[0] for row in rows}
    above: dict[str, set[str]] = {}
    for row in rows:
        if row.section == "g":
            above.setdefault(row.values[0], set()).add(row.values[1])
            if row.values[1] not in holders:
                findings.append(Finding(f"{ROWS_PATH}:{row.line}", f"the role '{row.values[1]}' has no row of its own"))
    findings.extend(
        Finding(f"{ROWS_PATH}:{row.line}", fault)
        for row in rows
        if row.section == "g" and (fault := _chain_fault(row.values[0], above))
    )
    return findings


def _chain_fault(start: str, above: Mapping[str, set[str]]) -> str | None:
    level = {start}
    for _ in range(MAX_ROLE_DEPTH):
        level = {role for name in level for role in above.get(name, ())}
        if start in level:
            return f"the role '{start}' contains itself"
        if not level:
            return None
    return f"the roles above '{start}' are nested deeper than {MAX_ROLE_DEPTH}, or in a circle"


def _expand(rows: Sequence[Row], domains: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """Rows of every domain for rows of the domain ``*``; sorted, each once."""
    expanded: dict[str, set[tuple[str, ...]]] = {"p": set(), "g": set()}
    for row in rows:
        at = _DOMAIN_FIELD[row.section]
        places = domains if row.values[at] == EVERY_DOMAIN else (row.values[at],)
        expanded[row.section].update((*row.values[:at], place, *row.values[at + 1 :]) for place in places)
    return {section: sorted(values) for section, values in expanded.items()}
