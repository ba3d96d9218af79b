"""The text side of importing price lists: pools written as a fleet file, and GPU facts read out of catalog text.

Rules: what is written loads again as it was; money and dates keep their form; nothing of a catalog is executed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from yaml.nodes import MappingNode, ScalarNode

from policyd.documents import YamlWriter, write_yaml

_MONEY: Final = ("amount", "input", "output")
_MIB_PER_GIB: Final = 1024
_GPU_INFO_MAX: Final = 2_000
_WIDTH: Final = 110


class _Money(str):
    """An amount of money: quoted, so that nobody's reader makes a float of it."""

    __slots__ = ()


class _OneLine(dict[str, Any]):
    """A small mapping that is written on one line."""


class _Writer(YamlWriter):
    """Writes fleet files as a person would."""


def _money(writer: _Writer, value: _Money) -> ScalarNode:
    return writer.represent_scalar("tag:yaml.org,2002:str", str(value), style='"')


def _one_line(writer: _Writer, value: _OneLine) -> MappingNode:
    return writer.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)


_Writer.add_representer(_Money, _money)
_Writer.add_representer(_OneLine, _one_line)


def pools_yaml(pools: Sequence[Mapping[str, Any]], heading: str, facts: Iterable[str]) -> str:
    """A fleet file of these pools. ``facts`` are the names of all facts; those of no pool are named in a comment."""
    unknown = [fact for fact in facts if not any(fact in pool for pool in pools)]
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += ["# Not known from the list, and refused until a person writes them down, best as `pool_defaults`:"]
    lines += _wrapped(unknown)
    text = write_yaml({"pools": [_node(pool) for pool in pools]}, width=_WIDTH, writer=_Writer)
    return "\n".join(lines) + "\n\n" + text


def _wrapped(names: Sequence[str]) -> list[str]:
    return [f"#   {', '.join(names[i : i + 8])}" for i in range(0, len(names), 8)]


def _node(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        node = {name: _node(below, name) for name, below in value.items()}
        return _OneLine(node) if key in ("accelerator", "locations") else node
    if isinstance(value, list):
        return [_node(item) for item in value]
    return _Money(value) if key in _MONEY else value


def gpu_memory_gib(text: str) -> int | None:
    """Memory of one GPU in GiB, from the GpuInfo of a SkyPilot catalog (JSON, or a Python literal); None if unclear."""
    if not 0 < len(text) <= _GPU_INFO_MAX:
        return None
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        try:
            info = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    try:
        size_mib = info["Gpus"][0]["MemoryInfo"]["SizeInMiB"]
    except (KeyError, IndexError, TypeError):
        return None
    if isinstance(size_mib, bool) or not isinstance(size_mib, int | float) or not 0 < size_mib < 1e9:
        return None
    return int(size_mib) // _MIB_PER_GIB or None
