"""Workload files: every fault with its line and the nearest known field."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from policyd.cli.workload_files import FILE_MAX_BYTES, read_request, request_files
from policyd.errors import RequestError

GOOD = "workload: {model: llama-3.1-70b-instruct, tenant: eu-bank}\noptions: {limit: 3}\n"


def refused(tmp_path: Path, text: str | bytes) -> tuple[RequestError, list[str]]:
    path = tmp_path / "w.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RequestError) as caught:
        read_request(str(path))
    return caught.value, [str(finding).removeprefix(str(path)) for finding in caught.value.findings]


def test_yaml_json_and_stdin_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.yaml").write_text(GOOD)
    (tmp_path / "w.json").write_text(
        json.dumps({"workload": {"model": "llama-3.1-70b-instruct", "tenant": "eu-bank"}, "options": {"limit": 3}})
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    read = [read_request(str(tmp_path / "w.yaml")), read_request(str(tmp_path / "w.json")), read_request("-")]
    assert read[0] == read[1] == read[2]
    assert read[0].options.limit == 3


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("workload:\n  modell: x\n  model: y\n", ":2: unknown key `workload.modell`; did you mean `model`?"),
        ("workload:\n  tenant: x\n", ":1: `workload.model` is missing"),
        ("workload: {model: x}\noptoins: {}\n", ":2: unknown key `optoins`; did you mean `options`?"),
        ("workload:\n  model: x\n  demand:\n    input_tokens: -4\n", ":4: `workload.demand.input_tokens`"),
        (
            "workload:\n  model: x\n  demand:\n    input_tokens: 99999999999999999999\n",
            ":4: 99999999999999999999 is larger",
        ),
        ("workload:\n  model: x\n  environment: prd\n", ":3: `workload.environment` is 'prd'"),
        ("workload:\n  model: x\n  data: {residency: []}\n", ":3: `workload.data.residency`"),
        ("model: x\n", ":1: the fields of the workload stand below `workload:`"),
        ("", ":1: the file is empty"),
        ("- 1\n", ":1: the file holds no fields by name"),
        ("workload: [\n", ":2: not YAML"),
        (b"workload: {model: \xff}\n", ":1: not UTF-8 text"),
        ("workload: {model: x, model: y}\n", ":1: key 'model' stands twice"),
    ],
)
def test_a_fault_has_its_line(tmp_path: Path, text: str | bytes, finding: str) -> None:
    error, findings = refused(tmp_path, text)
    assert error.exit_code == 2
    assert any(found.startswith(finding) for found in findings), findings


def test_every_fault_is_told(tmp_path: Path) -> None:
    _, findings = refused(tmp_path, "workload:\n  model: x\n  tennant: y\n  environment: prd\n")
    assert len(findings) == 2


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_what_cannot_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_request(str(tmp_path / name))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    error, _ = refused(tmp_path, "#" * (FILE_MAX_BYTES + 1))
    assert "larger than" in error.detail


def test_a_directory_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "notes.txt"):
        (tmp_path / name).write_text(GOOD)
    assert list(request_files([str(tmp_path), "x.yaml", "-"])) == [
        *(str(tmp_path / name) for name in ("a.json", "b.yaml")),
        *("x.yaml", "-"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no file"):
        list(request_files([str(tmp_path / "empty")]))


def test_the_shipped_examples_can_be_read(repository: Path) -> None:
    files = list(request_files([str(repository / "examples" / "workloads")]))
    assert len(files) >= 5
    for file in files:
        assert read_request(file).workload.tenant
