"""Values of the product in the words of a person: money, places, counts, any observed or required value.

Rules: pure; integers only, so no digit of money is made up; nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from policyd.core.places import COUNTRIES, GROUPS

_MICRO: Final = 1_000_000
_DIGITS_SHOWN: Final = 3
"""Digits of an amount below one dollar that say something; the rest is in the JSON."""
_GROUPS: Final = {countries: name for name, countries in sorted(GROUPS.items(), key=lambda group: group[0] == "EU")}
_NAMED_FROM: Final = 20
"""Countries from which on a group's name stands for them in a longer list."""


def usd(micro_usd: int | None) -> str:
    """An amount of micro-USD in dollars: ``$1,234.50``, ``$0.00512``; three digits that count below one dollar."""
    if micro_usd is None:
        return "unknown"
    sign, amount = ("-" if micro_usd < 0 else ""), abs(micro_usd)
    whole, rest = divmod(amount, _MICRO)
    if whole or not rest:
        cents = -(-rest // 10_000) if rest else 0
        whole, cents = whole + cents // 100, cents % 100
        return f"{sign}${whole:,}.{cents:02d}"
    digits = f"{rest:06d}"
    first = len(digits) - len(digits.lstrip("0"))
    return f"{sign}$0.{digits[: max(2, first + _DIGITS_SHOWN)]}"


def plural(count: int, noun: str) -> str:
    """``1 pool``, ``2 pools``; a noun in -y or -ss takes its own ending."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("ss"):
        return f"{count:,} {noun}es"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{count:,} {noun}s"


def places(countries: Iterable[str]) -> str:
    """Countries, by the name of their group when they are exactly one: ``EU (27 countries)``."""
    listed = sorted(set(countries))
    group = _GROUPS.get(frozenset(listed))
    if group is not None:
        return f"{group} ({len(listed)} countries)"
    without = sorted(COUNTRIES - set(listed))
    if listed and len(without) <= 12:
        return f"every country but {', '.join(without)}"
    inside = [group for group in _GROUPS if len(group) >= _NAMED_FROM and group <= set(listed)]
    if inside:
        largest = max(inside, key=lambda group: (len(group), _GROUPS[group]))
        others = sorted(set(listed) - largest)
        return f"{_GROUPS[largest]} ({len(largest)} countries), {', '.join(others)}"
    return ", ".join(listed) or "nowhere"


def where(locations: Mapping[str, Sequence[str]]) -> str:
    """All locations of a pool: one list when every aspect has the same, else the others aspect by aspect."""
    known = {aspect: tuple(countries) for aspect, countries in locations.items() if countries}
    if not known:
        return "unknown"
    main = known.get("processing") or next(iter(known.values()))
    others: dict[tuple[str, ...], list[str]] = {}
    for aspect, countries in known.items():
        if countries != main:
            others.setdefault(countries, []).append(aspect.replace("_access", ""))
    said = [places(main), *(f"{'+'.join(aspects)} {places(countries)}" for countries, aspects in others.items())]
    return "; ".join(said)


def operator(declared: Mapping[str, Any]) -> str:
    """The seat of an operator, and of its parent when that is another: ``DE``, ``IE, parent US``."""
    seat, parent = declared.get("seat"), declared.get("parent_seat")
    if seat is None and parent is None:
        return "unknown"
    return str(seat) if parent in (None, seat) else f"{seat or '?'}, parent {parent}"


def value(found: Any) -> str:
    """Any observed or required value of a violation."""
    if found is None:
        return "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, Mapping):
        if isinstance(found.get("name"), str) and len(found) > 1:
            return f"{found['name']} ({value({name: item for name, item in found.items() if name != 'name'})})"
        if len(found) > 1 and all(isinstance(item, list | tuple) for item in found.values()):
            return _alike(found)
        return "; ".join(f"{str(name).replace('_', ' ')} {value(item)}" for name, item in found.items()) or "none"
    if isinstance(found, list | tuple):
        items = [str(item) for item in found]
        if items and all(item in COUNTRIES for item in items):
            return places(items)
        return ", ".join(value(item) for item in found) or "none"
    return f"{found:,}" if isinstance(found, int) else str(found)


def _alike(found: Mapping[str, Sequence[Any]]) -> str:
    """Lists by name, the names of equal lists together: ``ingress+storage US; support access IE, US``."""
    names: dict[str, list[str]] = {}
    for name, items in found.items():
        names.setdefault(value(items), []).append(str(name).replace("_", " "))
    return "; ".join(f"{'+'.join(alike)} {items}" for items, alike in names.items())


def revision(commit: str | None, digest: str) -> str:
    """A revision for a head line: the commit when there is one, else the digest; both shortened."""
    return commit[:12] if commit else f"{digest.removeprefix('sha256:')[:12]} (not committed)"


def revision_whole(revision: Mapping[str, Any]) -> str:
    """A revision as evidence names it: commit when there is one, and digest, in full."""
    commit = revision["commit"]
    return f"{commit} {revision['digest']}" if commit else f"{revision['digest']} (not committed)"
