"""The description of the proofs about the log, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from policyd.api.openapi import content_of, parameter, problems_of, route

_CHECKPOINT_EXAMPLE: Final = (
    "policyd/7f3a5c1e-0b7d-4a52-9d3e-5a1f0c2b4d6e\n300\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 policyd/7f3a5c1e-0b7d-4a52-9d3e-5a1f0c2b4d6e "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
_CONSISTENCY_EXAMPLE: Final[dict[str, Any]] = {
    "log": "policyd/7f3a5c1e-0b7d-4a52-9d3e-5a1f0c2b4d6e",
    "from": 2,
    "to": 5,
    "proof": ["XwgPChozygdqlSeYMlgNs+DvRYS9/x9UyKNg9Q3jAx4=", "vBoGQ7EuTS18d5GPROD096GDi2z57FtbKD4fTYhZnms="],
}


_RECEIPT_EXAMPLE: Final = (
    "c2sp.org/tlog-proof@v1\nextra eyJpZCI6IjAxOTkiLCJvdXRjb21lIjoiYWxsb3cifQ==\nindex 5\n"
    f"{_CONSISTENCY_EXAMPLE['proof'][0]}\n\n{_CHECKPOINT_EXAMPLE}"
)
_EXPORT_EXAMPLE: Final = (
    '{"format":"policyd-export@v1","origin":"policyd/7f3a","key":"policyd/7f3a+1c2d3e4f+AUlj","from":300,"edge":[]}\n'
    '{"end":300,"checkpoints":0}\n'
)


class ConsistencyDocument(BaseModel):
    """That the log of ``to`` entries begins with that of ``from`` entries (RFC 6962, section 2.1.2)."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    log: str = Field(description="the name of the log, which is the first line of its checkpoints")
    first: int = Field(alias="from", ge=1)
    to: int = Field(ge=1)
    proof: list[str] = Field(description="hashes in base64", max_length=126)


LOG_SHOWN: Final = (ConsistencyDocument,)
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_SIZE: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}

CHECKPOINT: Final = route(
    "the newest checkpoint, a signed note (c2sp.org/tlog-checkpoint)",
    {"text/plain": {"schema": _TEXT, "example": _CHECKPOINT_EXAMPLE}},
    problems_of(400, 403, 404, 503),
)
CONSISTENCY: Final = route(
    "the proof",
    content_of("ConsistencyDocument", _CONSISTENCY_EXAMPLE),
    problems_of(400, 403, 404, 503),
    parameters=[
        {**parameter("from", "the size of the checkpoint that you have", _SIZE), "required": True},
        {**parameter("to", "the size of a later checkpoint; the newest when absent", _SIZE)},
    ],
)
RECEIPT: Final = route(
    "the receipt (c2sp.org/tlog-proof@v1), with the exact bytes of the entry as its extra data",
    {"text/plain": {"schema": _TEXT, "example": _RECEIPT_EXAMPLE}},
    problems_of(400, 404, 503),
)
EXPORT: Final = route(
    "one JSON document a line (docs/reference/evidence.md), up to the first checkpoint after a thousand entries",
    {"application/jsonl": {"schema": _TEXT, "example": _EXPORT_EXAMPLE}},
    problems_of(400, 403, 404, 503),
    parameters=[{**parameter("from", "the first entry", {**_SIZE, "minimum": 0, "default": 0})}],
)
