"""Cuts an input document down to what a package reads.

Rules: pure; a missing key stays missing, a value that is no object where keys were expected stays as it is, and an
object on the way stays an object, with the named keys alone. So an evaluation cannot tell the cut from the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Path = tuple[str, ...]


def project(document: Any, reads: Iterable[Path]) -> Any:
    """The part of ``document`` that the paths name. The path ``()`` names all of it. Values are shared, not copied."""
    return _cut(document, list(reads), 0)


def _cut(value: Any, reads: list[Path], depth: int) -> Any:
    if not isinstance(value, Mapping) or any(len(path) == depth for path in reads):
        return value
    below: dict[str, list[Path]] = {}
    for path in reads:
        below.setdefault(path[depth], []).append(path)
    return {key: _cut(value[key], paths, depth + 1) for key, paths in below.items() if key in value}
