"""Trees on a real file system and in real git repositories."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from dulwich import porcelain

from policyd.errors import FleetInvalid, RevisionError
from policyd.revisions import trees
from policyd.revisions.trees import read_tree, tree_commit, tree_digest

YAML = (".yaml", ".yml")


def plant(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / (name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def committed(root: Path) -> bytes:
    if not (root / ".git").exists():
        porcelain.init(str(root))
    porcelain.add(str(root), [str(path) for path in root.rglob("*") if path.is_file() and ".git" not in path.parts])
    return porcelain.commit(str(root), message=b"one", author=b"a <a@example.org>", committer=b"a <a@example.org>")


def test_reads_sorted_files_of_the_wanted_suffixes(tmp_path: Path) -> None:
    plant(tmp_path, b="2", a__c="1")
    (tmp_path / "notes.md").write_text("not part of it")
    (tmp_path / ".hidden.yaml").write_text("not part of it")
    assert list(read_tree(tmp_path, YAML).items()) == [
        (PurePosixPath("a/c.yaml"), b"1"),
        (PurePosixPath("b.yaml"), b"2"),
    ]


def test_a_single_file_is_its_own_tree(tmp_path: Path) -> None:
    plant(tmp_path, one="1")
    assert read_tree(tmp_path / "one.yaml", YAML) == {PurePosixPath("one.yaml"): b"1"}


def test_digest_depends_on_paths_and_contents_and_not_on_order() -> None:
    a, b = PurePosixPath("a"), PurePosixPath("b")
    assert tree_digest({a: b"1", b: b"2"}) == tree_digest({b: b"2", a: b"1"})
    assert len({tree_digest({a: b"1"}), tree_digest({b: b"1"}), tree_digest({a: b"2"}), tree_digest({})}) == 4


def test_every_fault_is_reported_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = plant(tmp_path / "outside", secret="x")
    root = plant(tmp_path / "root", good="1", large="123456789")
    (root / "link.yaml").symlink_to(outside / "secret.yaml")
    (root / "gone.yaml").symlink_to(root / "nothing.yaml")
    (root / "ring.yaml").symlink_to(root / "ring.yaml")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    os.mkfifo(root / "pipe.yaml")
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 8)
    with pytest.raises(FleetInvalid) as caught:
        read_tree(root, YAML, FleetInvalid)
    said = {Path(finding.where).name: finding.message for finding in caught.value.findings}
    assert said.keys() == {"link.yaml", "gone.yaml", "ring.yaml", "folder", "pipe.yaml", "large.yaml"}
    assert said["link.yaml"] == "a link that leaves the tree"
    assert said["pipe.yaml"] == "not a regular file"
    assert said["large.yaml"] == "larger than 8 bytes"


def test_a_link_inside_the_tree_is_a_file(tmp_path: Path) -> None:
    plant(tmp_path, good="1")
    (tmp_path / "again.yaml").symlink_to(tmp_path / "good.yaml")
    assert set(read_tree(tmp_path, YAML).values()) == {b"1"}
    assert len(read_tree(tmp_path, YAML)) == 2


@pytest.mark.parametrize(("name", "value"), [("MAX_FILES", 1), ("MAX_TREE_BYTES", 1), ("MAX_DEPTH", 0)])
def test_limits_of_the_whole_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    plant(tmp_path, a="1", b__c="2")
    monkeypatch.setattr(trees, name, value)
    with pytest.raises(RevisionError) as caught:
        read_tree(tmp_path, YAML)
    assert "more than" in caught.value.detail or "deeper than" in caught.value.detail


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RevisionError):
            read_tree(root, YAML)


def test_commit_is_named_only_when_head_holds_exactly_these_bytes(tmp_path: Path) -> None:
    root = plant(tmp_path, fleet__a="1", fleet__b="2", other="3") / "fleet"
    (root / "notes.md").write_text("x")
    assert tree_commit(root, read_tree(root, YAML), YAML) is None
    head = committed(tmp_path).decode()
    assert tree_commit(root, read_tree(root, YAML), YAML) == head
    assert tree_commit(root / "a.yaml", read_tree(root / "a.yaml", YAML), YAML) == head
    (root / "notes.md").write_text("notes are not part of the tree")
    assert tree_commit(root, read_tree(root, YAML), YAML) == head
    plant(root, c="added")
    assert tree_commit(root, read_tree(root, YAML), YAML) is None
    (root / "c.yaml").unlink()
    (root / "b.yaml").unlink()
    assert tree_commit(root, read_tree(root, YAML), YAML) is None, "a deleted file is a difference"
    plant(root, b="changed")
    assert tree_commit(root, read_tree(root, YAML), YAML) is None


def test_no_commit_yet_and_a_damaged_repository(tmp_path: Path) -> None:
    plant(tmp_path, a="1")
    porcelain.init(str(tmp_path))
    files = read_tree(tmp_path, YAML)
    assert tree_commit(tmp_path, files, YAML) is None
    committed(tmp_path)
    assert tree_commit(tmp_path, files, YAML) is not None
    for path in (tmp_path / ".git" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"damaged")
    assert tree_commit(tmp_path, files, YAML) is None
