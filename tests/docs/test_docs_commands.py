"""The commands that the README and the tutorials tell a reader to run do run, with the real ``policyd``.

A ``sh`` block below a line ``<!-- run -->`` is executed; ``<!-- run exit=3 -->`` states its exit code. The blocks of
one document run in order in one scratch directory with copies of ``deploy``, ``examples`` and ``policies``. A block of
the README or a tutorial that has a ``policyd`` command must be marked, or say ``<!-- not run: why -->``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs import PACKAGES, missing

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    ROOT / "docs" / "how-to" / "authenticate.md",
    ROOT / "docs" / "how-to" / "observe.md",
    ROOT / "docs" / "how-to" / "report.md",
    ROOT / "docs" / "how-to" / "impact.md",
    ROOT / "docs" / "how-to" / "export.md",
    ROOT / "docs" / "how-to" / "sign-and-approve.md",
    ROOT / "examples" / "journeys" / "README.md",
    ROOT / "docs" / "how-to" / "envoy.md",
    ROOT / "docs" / "how-to" / "waivers.md",
]
BLOCK = re.compile(r"(?:^<!--[ ]*(?P<mark>.+?)[ ]*-->\n\s*)?^```(?:sh|bash|console)\n(?P<code>.*?)^```$", re.M | re.S)
POLICYD = re.compile(r"^(?:\$ )?policyd ", re.MULTILINE)
SECONDS_MAX = 300


class Block(NamedTuple):
    """One shell block: its first line in the document, its code, and the exit code it must have (None: not run)."""

    line: int
    code: str
    exit_code: int | None


def blocks(text: str) -> list[Block]:
    """The shell blocks of a document; raises ``ValueError`` for a ``policyd`` command that nobody decided about."""
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        mark = match["mark"] or ""
        run = re.fullmatch(r"run(?: exit=(\d+))?", mark)
        if not run and POLICYD.search(match["code"]) and not re.fullmatch(r"not run: \S.*", mark):
            raise ValueError(f"line {line}: mark this block <!-- run --> or <!-- not run: why -->")
        found.append(Block(line, match["code"], int(run[1] or 0) if run else None))
    return found


def run(block: Block, folder: Path, name: str) -> None:
    """Execute one block as a reader would, from the scratch directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    done = subprocess.run(
        ["sh", "-eu", "-c", block.code],
        cwd=folder / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == block.exit_code, (
        f"{name}:{block.line} ended with {done.returncode}, not {block.exit_code}\n{done.stdout}\n{done.stderr}"
    )


def scratch(folder: Path) -> Path:
    """A directory that looks to a command like the root of a checkout, and may be written to."""
    (folder / "home").mkdir()
    (folder / "work").mkdir()
    for name in ("deploy", "examples", "policies"):
        shutil.copytree(ROOT / name, folder / "work" / name)
    return folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_the_document_run(document: Path, tmp_path: Path) -> None:
    text = document.read_text()
    code = "\n".join(block.code for block in blocks(text) if block.exit_code is not None)
    used = [program for program in PACKAGES if re.search(rf"^\s*{program} ", code, re.MULTILINE)]
    if (why := missing(*used)) is not None:
        pytest.skip(why)
    folder = scratch(tmp_path)
    for block in blocks(text):
        if block.exit_code is not None:
            run(block, folder, document.name)


def test_the_readme_has_commands_to_run() -> None:
    marked = [block for block in blocks((ROOT / "README.md").read_text()) if block.exit_code is not None]
    assert any(POLICYD.search(block.code) for block in marked)


SAMPLE = """# Title

<!-- run exit=3 -->
```sh
test -d examples && exit 3
```

```sh
git clone somewhere
```

<!-- not run: needs a GPU -->
```sh
policyd sidecar
```

<!-- run -->

```sh
echo one > made-before
```

```python
policyd = 1
```
"""


def test_blocks_are_found_with_their_marks(tmp_path: Path) -> None:
    found = blocks(SAMPLE)
    assert [(block.line, block.exit_code) for block in found] == [(5, 3), (9, None), (14, None), (20, 0)]
    folder = scratch(tmp_path)
    run(found[0], folder, "sample")
    run(found[3], folder, "sample")
    run(Block(1, "test $(cat made-before) = one", 0), folder, "sample")


def test_a_wrong_exit_code_fails_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"sample:7 ended with 1, not 0"):
        run(Block(7, "false\ntrue", 0), scratch(tmp_path), "sample")


@pytest.mark.parametrize("mark", ["", "<!-- not run: -->\n", "<!-- runs -->\n"])
def test_an_undecided_policyd_command_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="mark this block"):
        blocks(f"{mark}```sh\npolicyd decide x.yaml\n```\n")
