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
_ENTRIES_EXAMPLE: Final = '{"format":"policyd-entries@v1","origin":"policyd/7f3a","from":300,"size":300}\n{"end":300}\n'


class ConsistencyDocument(BaseModel):
    """That the log of ``to`` entries begins with that of ``from`` entries (RFC 6962, section 2.1.2)."""

    model_config = ConfigDict(extra="allow", defer_build=True, populate_by_name=True)

    log: str = Field(description="the name of the log, which is the first line of its checkpoints")
    first: int = Field(alias="from", ge=1)
    to: int = Field(ge=1)
    proof: list[str] = Field(description="hashes in base64", max_length=126)


class LostDocument(BaseModel):
    """The entries that were lost, by their indexes."""

    model_config = ConfigDict(extra="allow", defer_build=True, populate_by_name=True)

    first: int = Field(alias="from", ge=0)
    to: int = Field(ge=0)


class KnownDocument(BaseModel):
    """The newest checkpoint that somebody kept of what was lost."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    size: int = Field(ge=1)
    root: str = Field(description="in base64")


class GapDocument(BaseModel):
    """One restore of the log from a backup: an entry, at the index of the first entry that was lost."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    index: int = Field(ge=0)
    id: str = Field(description="the id of the entry, whose receipt proves it")
    lost: LostDocument
    known: KnownDocument
    persons: list[str] = Field(description="who signed the restore", min_length=2)
    why: str
    time: str
    words: str = Field(description="all of it in a sentence")


class GapsDocument(BaseModel):
    """What the log says that it has lost."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    log: str
    items: list[GapDocument] = Field(max_length=1_000)


LOG_SHOWN: Final = (ConsistencyDocument, LostDocument, KnownDocument, GapDocument, GapsDocument)
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
GAPS: Final = route(
    "the gaps, none as a rule",
    content_of(
        "GapsDocument",
        {
            "log": _CONSISTENCY_EXAMPLE["log"],
            "items": [
                {
                    "index": 10,
                    "id": "0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b",
                    "lost": {"from": 10, "to": 19},
                    "known": {"size": 20, "root": _CONSISTENCY_EXAMPLE["proof"][0]},
                    "persons": ["alice", "bob"],
                    "why": "the disk of the server was lost",
                    "time": "2026-03-01T09:12:44.000000Z",
                    "words": "entry 10 (0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b) says that entries 10 to 19 were lost, "
                    "and that alice and bob restored the log from a backup at 2026-03-01T09:12:44.000000Z: "
                    "the disk of the server was lost",
                }
            ],
        },
    ),
    problems_of(400, 403, 503),
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
ENTRIES: Final = route(
    "one JSON document a line (docs/reference/evidence.md), at most a thousand entries",
    {"application/jsonl": {"schema": _TEXT, "example": _ENTRIES_EXAMPLE}},
    problems_of(400, 403, 404, 503),
    parameters=[
        {**parameter("from", "the first entry", {**_SIZE, "minimum": 0, "default": 0})},
        {
            **parameter(
                "log", "the name of a log in the database; the server's own when absent", {**_TEXT, "minLength": 1}
            )
        },
    ],
)
