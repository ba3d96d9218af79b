"""An OPA bundle as a source: the same files have the same digest, and nothing in a bundle reaches outside it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from policyd.errors import SourceRefused, SourceUnreachable
from policyd.ports import TreeLimits
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.tree_sources import BundleSource, DirectorySource
from policyd.revisions.trees import tree_digest

Member = tuple[str, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def made(*members: Member | tarfile.TarInfo) -> Path:
        path = tmp_path / "bundle.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for one in members:
                info, content = (one, b"") if isinstance(one, tarfile.TarInfo) else (member(*one), one[1])
                archive.addfile(info, io.BytesIO(content))
        return path

    return made


def test_a_bundle_of_the_shipped_policies_has_their_digest(bundle: Callable[..., Path], repository: Path) -> None:
    directory = DirectorySource(repository / "policies", SUFFIXES).read(None)
    assert directory is not None
    members = [(f"/policies/{path}", content) for path, content in directory.files.items()]
    path = bundle((".manifest", b'{"revision": "2f7c", "roots": [""]}'), *members, ("readme.md", b"not taken"))
    found = BundleSource(path, SUFFIXES, "policies").read(None)
    assert found is not None
    assert tree_digest(found.files) == tree_digest(directory.files)
    assert found.commit == "2f7c"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (("../../etc/x.rego", b"package x"), "leaves the bundle"),
        (("a/../../x.rego", b"package x"), "leaves the bundle"),
        (("//etc/x.rego", b"package x"), "leaves the bundle"),
        (("a\\..\\x.rego", b"package x"), "leaves the bundle"),
        (member("x.rego", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link or a device"),
        (member("x.rego", kind=tarfile.LNKTYPE, link="y.rego"), "is a link or a device"),
        (member("x.rego", kind=tarfile.FIFOTYPE), "is a link or a device"),
        (("y.rego", b"package other"), "twice"),
        (("/".join("d" * 40) + "/x.rego", b"package x"), "deeper than"),
        ((".manifest", b"{"), "no JSON"),
        (("big.rego", b"#" * 5_000_000), "larger than"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_bundle_must_not_hold_is_refused(
    bundle: Callable[..., Path], bad: Member | tarfile.TarInfo, said: str
) -> None:
    with pytest.raises(SourceRefused, match=said):
        BundleSource(bundle(("y.rego", b"package y"), bad), SUFFIXES).read(None)


def test_a_bundle_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(SourceRefused, match="inflates to more"):
        BundleSource(path, SUFFIXES, limits=TreeLimits(10, 1_000_000, 2_000_000, 4)).read(None)


def test_every_cut_of_a_bundle_is_refused(bundle: Callable[..., Path], tmp_path: Path) -> None:
    whole = bundle(("y.rego", b"package y"), ("z.rego", b"package z")).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(SourceRefused):
            BundleSource(cut, SUFFIXES).read(None)
    cut.write_bytes(whole + b"x")
    with pytest.raises(SourceRefused, match="something follows"):
        BundleSource(cut, SUFFIXES).read(None)


def test_no_file_is_unreachable_and_not_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        BundleSource(tmp_path / "none.tar.gz", SUFFIXES).read(None)
    with pytest.raises(SourceUnreachable):
        DirectorySource(tmp_path / "none", SUFFIXES).read(None)
