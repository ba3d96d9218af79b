"""Countries and groups of countries: where data may be.

Sources: ISO 3166-1 alpha-2 (officially assigned codes); Treaty on European Union membership since 2020-02-01 (EU, 27);
EEA Agreement (EU + IS, LI, NO); European Commission adequacy decisions under GDPR article 45 for whole countries.
The United States is not in ``EU+adequate``: that decision covers only organisations certified under the Data Privacy
Framework, so it is a fact of an operator, not of a country. A fleet may declare further groups.

Rules: groups are expanded here, before any policy runs; an unknown name is an error, never an empty group.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

COUNTRIES: Final = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA
    CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA
    GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
    KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS
    MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS
    RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW
    TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
    """.split()
)

_EU = frozenset("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split())
_EEA = _EU | {"IS", "LI", "NO"}
_ADEQUATE = frozenset("AD AR CA CH FO GB GG IL IM JE JP KR NZ UY".split())

GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "EU": _EU,
    "EEA": _EEA,
    "EFTA": frozenset({"CH", "IS", "LI", "NO"}),
    "EU+adequate": _EEA | _ADEQUATE,
    "WORLD": COUNTRIES,
}


COMMON_MISTAKES: Final[Mapping[str, str]] = {"UK": "GB", "EL": "GR"}
"""Codes in wide use that ISO 3166-1 does not have, and the one that is meant."""


class UnknownPlace(ValueError):
    """A name that is neither a country code nor a group; the message carries the nearest known name."""


def expand(names: Iterable[str], groups: Mapping[str, frozenset[str]] = GROUPS) -> frozenset[str]:
    """The countries that the names stand for.

    Raises ``UnknownPlace`` for a name that is neither an ISO 3166-1 alpha-2 code nor a key of ``groups``.
    """
    countries: set[str] = set()
    for name in names:
        countries |= expand_one(name, groups)
    return frozenset(countries)


def expand_one(name: str, groups: Mapping[str, frozenset[str]] = GROUPS) -> frozenset[str]:
    """The countries that one name stands for; raises ``UnknownPlace``."""
    group = groups.get(name)
    if group is not None:
        return group
    if name in COUNTRIES:
        return frozenset({name})
    hint_at = COMMON_MISTAKES.get(name.upper())
    near = [hint_at] if hint_at else difflib.get_close_matches(name.upper(), [*groups, *COUNTRIES], n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UnknownPlace(f"unknown country or group {name!r}{hint} (ISO 3166-1 alpha-2, for example GB and not UK)")


def compact(countries: Iterable[str], groups: Mapping[str, frozenset[str]] = GROUPS) -> list[str]:
    """The same countries as few names: the largest groups that lie wholly inside, then what is left, sorted.

    ``expand(compact(c)) == set(c)``. Used where a person or a log reads the list.
    """
    left = set(countries)
    whole = frozenset(left)
    names: list[str] = []
    for name, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(members) > 1 and members <= whole and members & left == members:
            names.append(name)
            left -= members
    return names + sorted(left)
