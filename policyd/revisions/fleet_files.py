"""Fleet files: a folder of YAML files (or one file) becomes one ``Fleet``, or one error with every fault in it.

The top-level keys are the fields of ``FleetDocument``. Files are merged: lists are joined in the order of the paths,
mappings must not share a key, and ``defaults`` stands in one file only. A file may also carry ``pool_defaults``: a
mapping that is merged into each pool of that same file. What the pool says wins; mappings merge key by key, lists are
replaced, and an explicit null takes a default away.

Rules: every fault is a finding with file and line, and all of them come in one ``FleetInvalid``; a fleet that has any
fault is no fleet at all. References and duplicates are checked too in a fleet whose shape has faults, among what is
sound. Limits are constants here, in ``policyd.revisions.trees`` and in ``policyd.documents``.

Refused: everything that ``policyd.documents`` and ``policyd.revisions.trees`` refuse, unknown keys, dangling names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson
from pydantic import ValidationError

from policyd.core.fleet import Fleet, FleetDocument, dangling, place_groups
from policyd.documents import Document, Location, Spot, dotted, model_findings, nearest, read_yaml
from policyd.errors import Finding, FleetInvalid
from policyd.revisions.owners import OWNERS, read_owners
from policyd.revisions.trees import read_tree, tree_commit, tree_digest

SUFFIXES: Final = (".yaml", ".yml", "OWNERS")
MAX_POOLS: Final = 10_000
POOL_DEFAULTS: Final = "pool_defaults"

_LISTS: Final = ("pools", "models", "tenants", "sla_classes", "profiles", "data_sources", "budgets")
_MAPPINGS: Final = ("currencies", "place_groups", "classification_map")
_SINGLE: Final = "defaults"
_KEYS: Final = (*_LISTS, *_MAPPINGS, _SINGLE, POOL_DEFAULTS)


def load_fleet(path: Path) -> Fleet:
    """The fleet of a folder of YAML files, or of one file. Raises ``FleetInvalid`` with every finding."""
    files = read_tree(path, SUFFIXES, FleetInvalid)
    return parse_fleet(files, path if path.is_dir() else path.parent, tree_commit(path, files, SUFFIXES))


def parse_fleet(files: Mapping[PurePosixPath, bytes], root: Path = Path(), commit: str | None = None) -> Fleet:
    """The fleet that files hold, given as path and content. ``root`` is put before the paths in findings."""
    merging = _Merging()
    for path in sorted(files):
        if path.name == OWNERS.name:
            continue  # it says who may change the fleet, and nothing of the fleet
        merging.add(read_yaml(files[path], str(root / path)))
    document, findings = _validated(merging, root)
    findings += [Finding(str(root / found.where), found.message) for found in read_owners(files)[1]]
    if files and all(path.name == OWNERS.name for path in files):
        findings.append(Finding(str(root / OWNERS), "stands alone: it says who may change a fleet, and there is none"))
    if document is None or findings:
        count = len(findings)
        detail = f"{count} finding{'s' if count != 1 else ''} in the fleet files; the first: {findings[0]}"
        raise FleetInvalid(detail, findings=findings)
    return Fleet(document=document, digest=tree_digest(files), commit=commit, groups=place_groups(document))


class _Merging:
    """Files joined into one value, with the spot of every part of it."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {key: [] for key in _LISTS} | {key: {} for key in _MAPPINGS}
        self.below: dict[str | int, Spot] = {}
        self.findings: list[Finding] = []
        self.broken = False

    def add(self, document: Document) -> None:
        """Join one file; what does not belong becomes a finding and stays out."""
        self.findings.extend(document.findings)
        self.broken = self.broken or document.broken
        if document.broken:
            return
        if not isinstance(document.value, dict):
            said = "is empty" if document.value is None else "holds no mapping"
            self._find(document.spot, f"the file {said}; its keys are {', '.join(_KEYS)}")
            return
        for key, value in document.value.items():
            spot = document.spot.below[key]
            if key in _LISTS:
                self._add_list(key, value, spot)
            elif key in _MAPPINGS:
                self._add_mapping(key, value, spot)
            elif key == _SINGLE:
                self._add_single(key, value, spot)
            elif key != POOL_DEFAULTS:
                self._find(spot, f"unknown key `{key}`{nearest(key, _KEYS)}")
        if POOL_DEFAULTS in document.value:
            self._apply_pool_defaults(document)

    def _add_list(self, key: str, value: Any, spot: Spot) -> None:
        if not isinstance(value, list):
            self._find(spot, f"`{key}` is a list")
            return
        joined = self.value[key]
        below = dict(self.below[key].below) if key in self.below else {}
        for i, item in enumerate(value):
            below[len(joined)] = spot.below[i]
            joined.append(item)
        self.below[key] = Spot(spot.file, spot.line, below)

    def _add_mapping(self, key: str, value: Any, spot: Spot) -> None:
        if not isinstance(value, dict):
            self._find(spot, f"`{key}` is a mapping")
            return
        below = dict(self.below[key].below) if key in self.below else {}
        for name, item in value.items():
            if name in below:
                self._find(spot.below[name], f"`{key}.{name}` stands already at {below[name]}")
            else:
                self.value[key][name] = item
                below[name] = spot.below[name]
        self.below[key] = Spot(spot.file, spot.line, below)

    def _add_single(self, key: str, value: Any, spot: Spot) -> None:
        if key in self.value:
            self._find(spot, f"`{key}` stands already at {self.below[key]}")
        else:
            self.value[key], self.below[key] = value, spot

    def _apply_pool_defaults(self, document: Document) -> None:
        spot, defaults = document.spot.below[POOL_DEFAULTS], document.value[POOL_DEFAULTS]
        pools = document.value.get("pools")
        if not isinstance(defaults, dict):
            self._find(spot, f"`{POOL_DEFAULTS}` is a mapping")
            return
        if "id" in defaults:
            self._find(spot.below["id"], f"`{POOL_DEFAULTS}.id`: a pool states its own id")
            return
        if not isinstance(pools, list) or not pools:
            self._find(spot, f"`{POOL_DEFAULTS}` stands in a file without pools")
            return
        start = len(self.value["pools"]) - len(pools)
        below = dict(self.below["pools"].below)
        for i in range(start, len(self.value["pools"])):
            pool = self.value["pools"][i]
            if isinstance(pool, dict):
                self.value["pools"][i], below[i] = _overlaid(defaults, spot, pool, below[i])
        self.below["pools"] = Spot(self.below["pools"].file, self.below["pools"].line, below)

    def _find(self, spot: Spot, message: str) -> None:
        self.findings.append(Finding(str(spot), message))


def _overlaid(under: dict[str, Any], under_spot: Spot, over: dict[str, Any], spot: Spot) -> tuple[dict[str, Any], Spot]:
    """``over`` laid on ``under``: mappings merge, everything else is replaced; spots follow the value that won."""
    values, below = dict(under), dict(under_spot.below)
    for key, value in over.items():
        beneath = under.get(key)
        if isinstance(value, dict) and isinstance(beneath, dict):
            values[key], below[key] = _overlaid(beneath, under_spot.below[key], value, spot.below[key])
        else:
            values[key], below[key] = value, spot.below[key]
    return values, Spot(spot.file, spot.line, below)


def _validated(merging: _Merging, root: Path) -> tuple[FleetDocument | None, list[Finding]]:
    """The document, and every fault of its files, its shape and its names."""
    spot = Spot(str(root), 1, merging.below)
    findings = list(merging.findings)
    if len(merging.value["pools"]) > MAX_POOLS:
        return None, [*findings, Finding(str(spot.at(("pools",))), f"more than {MAX_POOLS} pools")]
    # A value that could not be read is None by now: its own finding says why, and a second one would only confuse.
    told = {finding.where for finding in findings}
    try:
        document = FleetDocument.model_validate_json(orjson.dumps(merging.value))
    except ValidationError as error:
        shape = model_findings(error, FleetDocument, spot, merging.value)
        findings += [finding for finding in shape if finding.where not in told]
        if not merging.broken:
            findings += _names_among_sound(merging.value, error, spot)
        return None, _ordered(findings)
    if not merging.broken:
        findings += [
            Finding(str(spot.at(location)), f"{_path(location, merging.value)}{message}")
            for location, message in dangling(document)
        ]
    return document, _ordered(findings)


def _names_among_sound(value: dict[str, Any], error: ValidationError, spot: Spot) -> Iterator[Finding]:
    """Dangling names and duplicates among the list items whose shape is sound; items with faults count as declared."""
    faulty: set[tuple[str, int]] = set()
    for fault in error.errors(include_url=False, include_input=False):
        match fault["loc"]:
            case (str(key), int(i), *_) if key in _LISTS:
                faulty.add((key, i))
            case _:
                return
    kept = {key: [i for i in range(len(value[key])) if (key, i) not in faulty] for key in _LISTS}
    sound = {**value, **{key: [value[key][i] for i in kept[key]] for key in _LISTS}}
    names = {repr(value[key][i].get("name")) for key, i in faulty if isinstance(value[key][i], dict)}
    document = FleetDocument.model_validate_json(orjson.dumps(sound))
    for location, message in dangling(document):
        if message.startswith("unknown ") and any(message.endswith(f" {name}") for name in names):
            continue
        if isinstance(location[0], str) and location[0] in kept and isinstance(location[1], int):
            location = (location[0], kept[location[0]][location[1]], *location[2:])
        yield Finding(str(spot.at(location)), f"{_path(location, value)}{message}")


def _path(location: Location, value: Any) -> str:
    path = dotted(location, value)
    return f"`{path}`: " if path else ""


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Sorted by file and line, each once."""

    def key(finding: Finding) -> tuple[str, int, str]:
        file, _, line = finding.where.rpartition(":")
        return (file, int(line), finding.message) if line.isdigit() else (finding.where, 0, finding.message)

    return sorted(dict.fromkeys(findings), key=key)
