"""Relative links in documents lead somewhere, to the heading that they name; decision records have their headings."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ADR_HEADINGS = ["Status", "Context", "Decision", "Consequences"]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")


def documents(repository: Path) -> list[Path]:
    """Every Markdown file of the checkout; folders with a leading dot hold what is not ours."""
    found = sorted(repository.rglob("*.md"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(repository).parts)]


def anchors(text: str) -> set[str]:
    """The fragment of each heading, as code hosts make it: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Each relative link of the document that leads nowhere."""
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z][a-z+.-]*:|//", link):
            continue
        name, _, fragment = unquote(link).partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target.read_text())):
            broken.append(f"{document.name}: {link}")
    return broken


def test_relative_links_lead_somewhere(repository: Path) -> None:
    found = documents(repository)
    assert repository / "README.md" in found
    assert [link for document in found for link in broken_links(document)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[a](there.md) [b](there.md#a-heading) [c](https://example.org/x) [d](#here)\n# Here\n", 0),
        ("[a](nowhere.md)", 1),
        ("[a](there.md#another)", 1),
        ("```\n[a](nowhere.md)\n```\n", 0),
    ],
)
def test_the_link_check_finds_what_is_broken(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "there.md").write_text("## A heading\n")
    (tmp_path / "page.md").write_text(text)
    assert len(broken_links(tmp_path / "page.md")) == count


def test_decision_records_have_their_headings_and_are_listed(repository: Path) -> None:
    folder = repository / "docs" / "adr"
    index = (folder / "index.md").read_text()
    records = sorted(folder.glob("[0-9]*.md"))
    numbers = [record.name[:4] for record in records]
    assert len(numbers) == len(set(numbers)), "a number stands for one decision, though not every number is taken"
    for record in records:
        text = record.read_text()
        title = text.splitlines()[0].removeprefix("# ")
        assert title.startswith(f"{record.name[:4]} ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ADR_HEADINGS, record.name
        assert f"[{title}]({record.name})" in index


def test_documents_are_all_reached_from_the_index(repository: Path) -> None:
    docs = repository / "docs"
    reached: set[Path] = set()
    queue = [docs / "index.md"]
    while queue:
        document = queue.pop().resolve()
        if document in reached or document.suffix != ".md" or not document.is_file():
            continue
        reached.add(document)
        links = LINK.findall(FENCE.sub("", document.read_text()))
        queue += [document.parent / unquote(link).partition("#")[0] for link in links if ":" not in link]
    lost = {path.resolve() for path in docs.rglob("*.md")} - reached
    assert sorted(str(path.relative_to(docs)) for path in lost) == []
