"""Workload files: YAML or JSON that holds one decision request, as ``POST /v1/decisions`` takes it.

Rules: every fault is a finding with file and line, and names the nearest known field; ``-`` is stdin; a file is read
once and has a limit. It refuses a bare workload: the file says ``workload:`` (and may say ``options:``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import orjson
from pydantic import ValidationError

from policyd.core.workload import DecisionRequest, WorkloadRequest
from policyd.documents import model_findings, read_yaml
from policyd.errors import Finding, RequestError

FILE_MAX_BYTES: Final = 262_144
STDIN: Final = "-"
SUFFIXES: Final = (".yaml", ".yml", ".json")


def read_request(name: str) -> DecisionRequest:
    """The request of a file, or of stdin for ``-``. Raises ``RequestError`` with every finding."""
    shown = "stdin" if name == STDIN else name
    document = read_yaml(_content(name, shown), shown)
    if document.findings:
        raise _unusable(shown, document.findings)
    value = document.value
    if not isinstance(value, dict):
        said = "is empty" if value is None else "holds no fields by name"
        raise _unusable(shown, [Finding(str(document.spot), f"the file {said}; it begins with `workload:`")])
    if "workload" not in value and value.keys() & WorkloadRequest.model_fields.keys():
        where = str(document.spot)
        raise _unusable(shown, [Finding(where, "the fields of the workload stand below `workload:`; indent them")])
    try:
        return DecisionRequest.model_validate_json(orjson.dumps(value))
    except ValidationError as error:
        raise _unusable(shown, model_findings(error, DecisionRequest, document.spot, value)) from None


def request_files(names: Sequence[str]) -> Iterator[str]:
    """The files that names stand for: a directory is all its YAML and JSON files, in order of their names."""
    for name in names:
        path = Path(name)
        if name == STDIN or not path.is_dir():
            yield name
            continue
        found = sorted(str(child) for child in path.iterdir() if child.is_file() and child.suffix in SUFFIXES)
        if not found:
            raise RequestError(f"{name} holds no file that ends in {' or '.join(SUFFIXES)}")
        yield from found


def _content(name: str, shown: str) -> bytes:
    try:
        if name == STDIN:
            content = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{shown} cannot be read: {error.strerror}", remedy="name a file that can be read") from None
    if len(content) > FILE_MAX_BYTES:
        raise RequestError(f"{shown} is larger than {FILE_MAX_BYTES} bytes")
    return content


def _unusable(shown: str, findings: Sequence[Finding]) -> RequestError:
    return RequestError(
        f"{shown} is no decision request", findings=findings, remedy="correct the named lines and run it again"
    )
