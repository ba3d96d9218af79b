"""A git repository as a source: over file:// and HTTP, and what a hostile, damaged or silent one comes to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from dulwich.objects import Blob, Tag

from connectors.git_source import GitPlace, GitSource
from policyd.errors import ConfigError, SourceRefused, SourceUnreachable
from policyd.ports import TreeLimits
from policyd.revisions.tree_sources import LIMITS
from tests.integration.git_server import BACKEND, BareRepository, served

FILES = {"policies/a/a.rego": b"package a\n", "policies/settings.yaml": b"settings: {}\n", "readme.md": b"no"}
SUFFIXES = (".rego", ".yaml")


@pytest.fixture
def bare(tmp_path: Path) -> BareRepository:
    return BareRepository(tmp_path / "repository.git")


@pytest.fixture
def source(bare: BareRepository, tmp_path: Path) -> Callable[..., GitSource]:
    def made(location: str | None = None, limits: TreeLimits = LIMITS, **more: object) -> GitSource:
        place = {name: more.pop(name) for name in list(more) if name in GitPlace.__dataclass_fields__}
        at = GitPlace(location or f"file://{bare.path}", path=str(place.pop("path", "policies")), **place)  # type: ignore[arg-type] - any of its fields
        return GitSource(at, tmp_path / "mirror", SUFFIXES, limits, **more)  # type: ignore[arg-type] - any of its fields

    return made


def read(source: GitSource, known: str | None = None) -> tuple[str | None, dict[str, bytes]]:
    found = source.read(known)
    assert found is not None
    return found.commit, {str(path): content for path, content in found.files.items()}


def test_a_branch_is_read_and_a_known_commit_is_not_read_again(
    bare: BareRepository, source: Callable[..., GitSource]
) -> None:
    first = bare.commit(FILES)
    assert read(source()) == (first, {"a/a.rego": b"package a\n", "settings.yaml": b"settings: {}\n"})
    assert source().read(first) is None
    second = bare.commit({**FILES, "policies/a/a.rego": b"package a # 2\n"})
    commit, files = read(source(), first)
    assert commit == second
    assert files["a/a.rego"] == b"package a # 2\n"
    with pytest.raises(SourceRefused, match="no branch 'other'; there is main"):
        source(branch="other").read(None)
    with pytest.raises(SourceRefused, match="has no folder 'elsewhere'"):
        source(path="elsewhere").read(None)
    with pytest.raises(SourceRefused, match="holds no file that ends in"):
        GitSource(source().at, source().mirror, (".conf",), LIMITS).read(None)


def test_an_annotated_tag_leads_to_its_commit(bare: BareRepository, source: Callable[..., GitSource]) -> None:
    commit = bare.commit(FILES)
    tag = Tag()
    tag.name, tag.message, tag.tagger, tag.tag_time, tag.tag_timezone = b"v1", b"v1", b"A <a@example.org>", 1, 0
    tag.object = (type(bare.repo[commit.encode()]), commit.encode())  # type: ignore[assignment] - an id is bytes
    bare.repo.object_store.add_object(tag)
    bare.repo.refs[b"refs/tags/v1"] = tag.id  # type: ignore[index] - a name of a ref is bytes
    assert read(source(tag="v1"))[0] == commit


@pytest.mark.skipif(not BACKEND.exists(), reason="git http-backend of Debian's git is not installed")
def test_over_http_it_is_the_same(bare: BareRepository, source: Callable[..., GitSource], tmp_path: Path) -> None:
    first = bare.commit(FILES)
    with served(tmp_path) as address:
        over = source(f"{address}/repository.git")
        assert read(over) == (first, {"a/a.rego": b"package a\n", "settings.yaml": b"settings: {}\n"})
        second = bare.commit(FILES)
        assert read(over, first)[0] == second
        assert over.read(second) is None
        shallow = tmp_path / "shallow.git"
        subprocess.run(
            ["git", "clone", "-q", "--bare", "--depth", "1", f"file://{bare.path}", shallow], check=True, timeout=30
        )
        shutil.rmtree(over.mirror)
        for _ in range(2):
            with pytest.raises(SourceRefused, match="is shallow"):
                source(f"{address}/shallow.git").read(None)
        with pytest.raises(SourceRefused, match="is shallow"):
            source(str(shallow)).read(None)
        assert read(over)[0] == second
        with pytest.raises(SourceUnreachable, match="no git repository"):
            source(f"{address}/none.git").read(None)


def test_rewritten_history_is_refused_until_somebody_accepts_it(
    bare: BareRepository, source: Callable[..., GitSource]
) -> None:
    bare.commit(FILES)
    good = bare.commit(FILES)
    forced = bare.commit({**FILES, "policies/a/a.rego": b"package b\n"}, parents=[])
    with pytest.raises(SourceRefused, match=f"history was rewritten: {forced} does not descend from {good}"):
        source().read(good)
    assert read(source(accept_rewritten=True), good)[0] == forced
    shutil.rmtree(source().mirror)  # what is kept beside the data changes nothing of it
    with pytest.raises(SourceRefused, match="history was rewritten"):
        source().read(good)
    back = bare.commit(FILES, parents=[good.encode(), forced.encode()])
    assert read(source(), good)[0] == back


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"sub": (0o160000, b"1" * 40)}, "sub is a submodule"),
        ({"link.rego": (0o120000, b"")}, "link.rego is a link"),
        ({"..": (0o100644, b"")}, "no plain name"),
        ({"a\\b.rego": (0o100644, b"")}, "no plain name"),
        ({"x\n.rego": (0o100644, b"")}, "no plain name"),
    ],
)
def test_entries_that_are_no_files_are_refused(
    bare: BareRepository, source: Callable[..., GitSource], odd: dict[str, tuple[int, bytes]], said: str
) -> None:
    blob = Blob.from_string(b"/etc/passwd")
    bare.repo.object_store.add_object(blob)
    bare.commit(FILES, odd={name: (mode, sha or blob.id) for name, (mode, sha) in odd.items()})
    with pytest.raises(SourceRefused, match=said):
        source(path="").read(None)


def test_what_is_too_large_is_refused(bare: BareRepository, source: Callable[..., GitSource]) -> None:
    bare.commit({"policies/a.rego": b"#" * 3_000, "policies/b.rego": b"#" * 3_000, "policies/c/d/e.rego": b"#"})
    for limits, said in [
        (TreeLimits(9, 2_000, 10_000, 9), "larger than 2000 bytes"),
        (TreeLimits(9, 5_000, 4_000, 9), "or 4000 bytes"),
        (TreeLimits(1, 5_000, 10_000, 9), "more than 1 files"),
        (TreeLimits(9, 5_000, 10_000, 1), "deeper than 1 folders"),
    ]:
        with pytest.raises(SourceRefused, match=said):
            source(limits=limits).read(None)


def test_a_history_larger_than_the_limit_is_not_fetched(bare: BareRepository, source: Callable[..., GitSource]) -> None:
    bare.commit({**FILES, "huge.bin": os.urandom(3 * 1024**2)})
    with pytest.raises(SourceRefused, match="larger than fetch_max_mib, 1 MiB"):
        source(fetch_max_mib=1).read(None)
    assert read(source())[0] is not None


def test_a_damaged_repository_is_refused_and_a_damaged_copy_is_fetched_again(
    bare: BareRepository, source: Callable[..., GitSource]
) -> None:
    first = bare.commit(FILES)
    assert read(source())[0] == first
    for path in sorted(source().mirror.rglob("*.pack")) + sorted(source().mirror.rglob("*.idx")):
        path.chmod(0o600)
        path.write_bytes(b"damaged")
    assert read(source())[0] == first
    blob = Blob.from_string(FILES["policies/a/a.rego"])
    loose = bare.path / "objects" / blob.id[:2].decode() / blob.id[2:].decode()
    good = loose.read_bytes()
    loose.chmod(0o600)
    for content in (b"", good[:-12], b"\0" * len(good)):
        loose.write_bytes(content)
        shutil.rmtree(source().mirror)
        with pytest.raises((SourceRefused, SourceUnreachable)):
            source().read(None)
    other = Blob.from_string(b"package evil\n")
    bare.repo.object_store.add_object(other)
    lying = bare.path / "objects" / other.id[:2].decode() / other.id[2:].decode()
    loose.write_bytes(lying.read_bytes())
    shutil.rmtree(source().mirror)
    with pytest.raises((SourceRefused, SourceUnreachable)):
        source().read(None)


def test_a_server_that_says_nothing_is_given_up_at_the_deadline(source: Callable[..., GitSource]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken: list[socket.socket] = []
        thread = threading.Thread(target=lambda: taken.append(silent.accept()[0]), daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(SourceUnreachable, match="did not answer within 1500 ms and was given up"):
            source(f"http://127.0.0.1:{silent.getsockname()[1]}/x.git", deadline_ms=1_500).read(None)
        assert time.monotonic() - began < 20
        thread.join(5)
        taken[0].settimeout(5)
        while taken[0].recv(65_536):  # the child is gone, so its side is closed
            pass
        taken[0].close()


def test_ssh_takes_no_unknown_host_and_names_the_failure(source: Callable[..., GitSource]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(SourceUnreachable):
        source(f"ssh://git@127.0.0.1:{port}/x.git").read(None)


def test_a_secret_is_in_no_message(source: Callable[..., GitSource], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-token\n")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(SourceUnreachable) as caught:
        source(f"http://127.0.0.1:{port}/x.git", token_file=token).read(None)
    assert "s3cret" not in caught.value.detail
    with pytest.raises(ConfigError, match="token file"):
        source(token_file=tmp_path / "none").read(None)


def test_the_same_files_have_the_digest_of_the_directory(
    bare: BareRepository, source: Callable[..., GitSource], repository: Path
) -> None:
    from policyd.revisions.policy_files import SUFFIXES as POLICY_SUFFIXES
    from policyd.revisions.trees import read_tree, tree_digest

    files = read_tree(repository / "policies", POLICY_SUFFIXES)
    bare.commit({f"policies/{path}": content for path, content in files.items()})
    found = source()
    tree = GitSource(found.at, found.mirror, POLICY_SUFFIXES, LIMITS).read(None)
    assert tree is not None
    assert tree_digest(tree.files) == tree_digest(files)
    assert PurePosixPath("residency/residency.rego") in tree.files
