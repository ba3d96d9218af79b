"""A real ``policyd serve --workers 2`` that follows a repository: every process serves what one look has found."""

from __future__ import annotations

from pathlib import Path

import orjson

from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from tests.e2e.test_serve_kill import served
from tests.e2e.test_serve_workers import PLAIN, decide, eventually
from tests.integration.git_server import BareRepository
from tests.integration.test_sheet_book import ENDLESS

FEW = ("residency", "casbin", "settings.yaml")


def test_all_processes_take_a_new_commit_and_none_takes_a_broken_one(tmp_path: Path, repository: Path) -> None:
    tree = read_tree(repository / "policies", SUFFIXES)
    files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
    bare = BareRepository(tmp_path / "law.git")
    first = bare.commit(files)
    source = {"kind": "git", "location": str(bare.path)}
    config = tmp_path / "policyd.yaml"
    config.write_bytes(orjson.dumps({"sources": {"policies": source, "poll_ms": 300}}))
    with served(tmp_path / "data", repository, "--workers", "2", "--config", str(config)) as (_, address):

        def commits() -> set[str]:
            return {decide(address).json()["policy"]["commit"] for _ in range(8)}

        assert commits() == {first}
        second = bare.commit({**files, "settings.yaml": files["settings.yaml"] + b"# 2\n"})
        eventually(lambda: commits() == {second})
        broken = bare.commit({**files, "settings.yaml": b"settings: [\n"})

        def reasons() -> set[str]:
            found = [PLAIN.get(f"{address}/readyz").json()["checks"] for _ in range(8)]
            return {str(check["reason"]) for checks in found for check in checks if check["name"] == "sources"}

        eventually(lambda: len(reasons()) == 1 and broken in next(iter(reasons())))
        answers = [decide(address).json()["policy"] for _ in range(8)]
        assert {answer["commit"] for answer in answers} == {second}
        assert len({answer["stale_since"] for answer in answers}) == 1


def test_all_processes_try_a_revision_and_what_one_finds_against_it_takes_it_back_in_all(
    tmp_path: Path, repository: Path
) -> None:
    tree = read_tree(repository / "policies", SUFFIXES)
    files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
    bare = BareRepository(tmp_path / "law.git")
    first = bare.commit(files)
    config = tmp_path / "policyd.yaml"
    share = {"canary_ppm": 1_000_000, "canary_min_ms": 3_600_000, "canary_failures_max": 0}
    settings = {
        "sources": {"policies": {"kind": "git", "location": str(bare.path)}, "poll_ms": 300},
        "activation": {"steps": ["canary"], "gates": [], **share},
        "engine": {"deadline_ms": 500},
    }
    config.write_bytes(orjson.dumps(settings))
    with served(tmp_path / "data", repository, "--workers", "2", "--config", str(config)) as (_, address):

        def commits() -> set[str]:
            return {decide(address).json()["policy"]["commit"] for _ in range(8)}

        assert commits() == {first}
        tried = bare.commit({**files, "endless/endless.rego": ENDLESS.encode()})
        eventually(lambda: commits() == {tried})
        active = PLAIN.get(f"{address}/v1/revisions/active").json()
        assert [each["state"] for each in active["candidates"]] == ["canary"]
        request = {"workload": {"tenant": "eu-bank", "model": "llama-3.1-8b-instruct", "resources": {"gpu_count": 7}}}
        answer = PLAIN.post(f"{address}/v1/decisions", json=request)
        assert (answer.status_code, answer.json()["policy"]["commit"]) == (200, first)
        eventually(lambda: commits() == {first})
        (found,) = PLAIN.get(f"{address}/v1/revisions/active").json()["candidates"]
        assert (found["commit"], found["state"]) == (tried, "refused")
        assert "engine.failed" in found["said"]
