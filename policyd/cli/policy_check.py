"""What ``policyd policy check`` prints: a table for a person, the document, or a form that CI reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from policyd.cli.finding_formats import Reported, TestCase, github, junit, sarif
from policyd.cli.options import CheckOutput
from policyd.cli.terminal import BAD, CAREFUL, GOOD, Output, encoded, grid
from policyd.services.policy_review import CHECKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from policyd.core.verdict import PolicySet
    from policyd.services.policy_review import Remark, Review


def document(review: Review, root: Path) -> dict[str, Any]:
    """The review as JSON values."""
    policies = review.policies
    return {
        "policies": str(root),
        "digest": None if review.tree is None else review.tree.digest,
        "commit": None if review.tree is None else review.tree.commit,
        "engine": None if policies is None else policies.engine,
        "packages": [] if policies is None else [_package(policies, name) for name in sorted(policies.packages)],
        "findings": [_remark(remark) for remark in review.errors],
        "warnings": [_remark(remark) for remark in review.remarks if remark.level != "error"],
    }


def _remark(remark: Remark) -> dict[str, str]:
    return {"check": remark.check, "where": remark.where, "message": remark.message}


def _package(policies: PolicySet, name: str) -> dict[str, Any]:
    package = policies.packages[name]
    return {
        "package": name,
        "title": package.title,
        "enforcement": package.enforcement.value,
        "owner": package.owner,
        "location": package.location,
        "exports": sorted(package.exports),
        "rules": sorted(package.rules),
        "reads": [".".join(path) for path in package.reads],
    }


def shown(review: Review, root: Path, output: CheckOutput) -> str | None:
    """The review as text; None for the table, which a console draws."""
    if output is CheckOutput.TABLE:
        return None
    if output in (CheckOutput.JSON, CheckOutput.YAML):
        return encoded(document(review, root), Output(output.value))
    reported = [Reported(one.check, one.level, one.where, one.message) for one in review.remarks]
    if output is CheckOutput.SARIF:
        return sarif(reported, CHECKS, root)
    if output is CheckOutput.GITHUB:
        return github(reported, root)
    return junit(_cases(review.remarks, root))


def _cases(remarks: Sequence[Remark], root: Path) -> list[TestCase]:
    """A test for each check, which fails with all its errors; what is only a warning fails no test."""
    cases = []
    for name, title in CHECKS.items():
        errors = [remark for remark in remarks if remark.check == name and remark.level == "error"]
        failure = "\n".join(f"{one.where}: {one.message}" if one.where else one.message for one in errors)
        place, _ = Reported(name, "error", errors[0].where, "").place(root) if errors else (None, 1)
        cases.append(TestCase("policyd policy check", f"{name}: {title}", place or "", failure or None))
    return cases


def draw(review: Review, root: Path, console: Console) -> None:
    """The review for a person: packages, then findings, then one line that sums up."""
    from policyd.cli import words

    found = document(review, root)
    if found["packages"]:
        table = grid(("package", "enforcement", "owner", "rules", "reads", "title"), right=("rules", "reads"))
        for package in found["packages"]:
            counts = (str(len(package["rules"])), words.plural(len(package["reads"]), "path"))
            table.add_row(package["package"], package["enforcement"], package["owner"], *counts, package["title"])
        console.print(table)
        console.print()
    for finding in found["findings"]:
        text = ": ".join(part for part in (finding["where"], finding["message"]) if part)
        console.print(f"{text} ({finding['check']})", style=BAD, soft_wrap=True)
    warned = words.plural(len(found["warnings"]), "warning")
    if found["warnings"]:
        console.print(f"{warned} about facts of the fleet: see `policyd fleet check`", style=CAREFUL)
    if found["findings"]:
        console.print(f"{words.plural(len(found['findings']), 'finding')} in {root}", style=BAD)
        return
    revision = words.revision(found["commit"], found["digest"])
    count = words.plural(len(found["packages"]), "package")
    console.print(f"{root} holds together: {count}, {revision}, on {found['engine']}", style=GOOD)
