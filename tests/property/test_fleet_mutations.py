"""Whatever happens to a fleet file, the loader gives a fleet or ``FleetInvalid`` with findings, and nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath

from hypothesis import example, given
from hypothesis import strategies as st

from policyd.core.fleet import Fleet
from policyd.documents import read_yaml
from policyd.errors import FleetInvalid
from policyd.revisions.fleet_files import parse_fleet

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "fleet"
WHOLE = ("models.yaml", "profiles.yaml", "sla.yaml", "sources.yaml", "tenants.yaml")
"""Small enough to be read in every example; pools come as one file."""

FRAGMENTS = (
    "1e999", ".nan", "-.inf", "2026-13-45", "2026-07-01T00:00:00Z", "null", "~", "[]", "{}", "true", "-1", "0x1F",
    "'", '"', ": ", "- ", "&a ", "*a", "<<: *a", "!!binary x", "!x ", "%YAML 1.1\n", "---\n", "...\n", "\t", "\x00",
    "\ufeff", "\ud7ff", "é", "NO", "UK", "\r\n", "\\ud800", "99999999999999999999999", "? ", "| ", "> ", "#", "@",
    "`",
)  # fmt: skip


@cache
def originals() -> dict[str, str]:
    return {name: (EXAMPLES / name).read_text() for name in (*WHOLE, "pools-own.yaml")}


def load(files: dict[str, bytes]) -> Fleet | None:
    """The fleet, or None after a refusal that a person can act on. Anything else is the failure that we look for."""
    try:
        return parse_fleet({PurePosixPath(name): content for name, content in files.items()})
    except FleetInvalid as error:
        refusal = error
    assert refusal.findings
    for finding in refusal.findings:
        file, _, line = finding.where.rpartition(":")
        assert 1 <= int(line) <= files[file].count(b"\n") + files[file].count(b"\r") + 2
        assert finding.message
    return None


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, bytes]:
    files = {name: text.encode() for name, text in originals().items()}
    name = draw(st.sampled_from(sorted(files)))
    lines = originals()[name].splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(("drop", "double", "swap", "indent", "value", "insert", "cut", "byte")))
        line = lines[at]
        if how == "drop":
            lines[at] = ""
        elif how == "double":
            lines[at] = line * 2
        elif how == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], line
        elif how == "indent":
            lines[at] = " " * draw(st.integers(1, 3)) + line
        elif how == "value":
            lines[at] = line.partition(":")[0] + ": " + draw(st.sampled_from(FRAGMENTS)) + "\n"
        elif how == "insert":
            column = draw(st.integers(0, len(line)))
            lines[at] = line[:column] + draw(st.sampled_from(FRAGMENTS)) + line[column:]
        elif how == "cut":
            lines[at] = line[: draw(st.integers(0, len(line)))]
        else:
            lines[at] = line + draw(st.characters(codec="utf-8"))
    files[name] = "".join(lines).encode("utf-8", "surrogatepass")
    return files


@given(mutated())
def test_a_mutated_fleet_loads_or_is_refused_with_findings(files: dict[str, bytes]) -> None:
    fleet = load(files)
    assert fleet is None or fleet.digest.startswith("sha256:")


@given(st.binary(max_size=400))
@example(b"%YAML 3.0\n---\na: 1\n")
@example(b"\xef\xbb\xbfpools: []\n")
@example(b"? [a]\n: b\n")
def test_any_bytes_are_a_document_or_findings(content: bytes) -> None:
    document = read_yaml(content, "f")
    assert document.broken <= bool(document.findings)
    load({"f.yaml": content})


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \n\t~<01."), max_size=60))
def test_any_yaml_like_text_is_a_document_or_findings(text: str) -> None:
    document = read_yaml(text.encode(), "f")
    assert document.broken <= bool(document.findings)
