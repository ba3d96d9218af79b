"""A policy revision from a directory: Rego modules, their tests, data and Casbin, as bytes with a content address.

    policies/<package>/<package>.rego  policies/<package>/*_test.rego  policies/settings.yaml  policies/casbin/

Rules: everything is read once, through ``policyd.revisions.trees``; golden cases and schemas are no part of what is
evaluated, but of the digest, since a revision is what passed them together, and so is OWNERS.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from policyd.errors import Finding, PolicyInvalid
from policyd.ports import PolicyTree
from policyd.revisions.owners import read_owners
from policyd.revisions.trees import read_tree, tree_commit, tree_digest

SUFFIXES: Final = (".rego", ".yaml", ".yml", ".json", ".conf", ".csv", "OWNERS")
CASBIN_MODEL: Final = PurePosixPath("casbin/model.conf")
CASBIN_ROWS: Final = PurePosixPath("casbin/rows.csv")
_ASIDE: Final = frozenset({"cases", "schemas"})


def load_policy_tree(root: Path) -> PolicyTree:
    """The tree below ``root``. Raises ``PolicyInvalid`` with a finding for each file that cannot be part of it."""
    files = read_tree(root, SUFFIXES, PolicyInvalid)
    return policy_tree(files, tree_commit(root, files, SUFFIXES), root)


def policy_tree(files: dict[PurePosixPath, bytes], commit: str | None, root: Path = Path()) -> PolicyTree:
    """The tree of files already read; ``root`` only words the findings."""
    findings: list[Finding] = []
    texts: dict[PurePosixPath, str] = {}
    for path, content in files.items():
        try:
            texts[path] = content.decode("utf-8")
        except UnicodeDecodeError:
            findings.append(Finding(str(root / path), "is not UTF-8"))
    findings += [
        Finding(str(root / needed), "is missing: without entitlements nobody may place anything")
        for needed in (CASBIN_MODEL, CASBIN_ROWS)
        if needed not in files
    ]
    findings += [Finding(str(root / found.where), found.message) for found in read_owners(files)[1]]
    modules = {path: text for path, text in texts.items() if path.suffix == ".rego"}
    tests = {path: text for path, text in modules.items() if path.stem.endswith("_test")}
    if len(tests) == len(modules):
        findings.append(Finding(str(root), "holds no Rego module"))
    data = {
        path: text
        for path, text in texts.items()
        if path.suffix in (".yaml", ".yml", ".json") and path.parts[0] not in _ASIDE and len(path.parts) == 1
    }
    if findings:
        raise PolicyInvalid(f"{root} is no policy tree: {findings[0]}", findings=findings)
    return PolicyTree(
        digest=tree_digest(files),
        commit=commit,
        modules={path: text for path, text in modules.items() if path not in tests},
        tests=tests,
        data=data,
        casbin_model=texts[CASBIN_MODEL],
        casbin_rows=texts[CASBIN_ROWS],
    )
