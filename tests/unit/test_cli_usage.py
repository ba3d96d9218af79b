"""What a person meets who types something wrong: one shape of answer, the nearest right word, never a stack trace."""

from __future__ import annotations

import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from policyd.cli import failures
from policyd.cli.main import app, run
from policyd.errors import Finding, NotFound

HEAVY = ("fastapi", "uvicorn", "sqlalchemy", "sqlmodel", "casbin", "regopy", "httpx", "yaml", "dulwich")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
FLAGS = [(path, flag) for path, command in COMMANDS.items() for p in command.params for flag in p.opts if "--" in flag]


def misspelt(word: str) -> str:
    """The word with its last two letters the other way round, or one letter more."""
    swapped = word[:-2] + word[-1] + word[-2]
    return swapped if swapped != word else word + word[-1]


def test_the_commands_are_those_of_the_contract() -> None:
    assert {" ".join(path) for path in COMMANDS} == {
        *("serve", "decide", "explain", "simulate", "break-even", "doctor", "demo"),
        *("pool list", "pool show", "fleet check", "fleet import", "policy check", "policy test", "policy init"),
        "policy approve",
        "compliance",
        *("waiver request", "waiver approve", "waiver list", "waiver break-glass"),
        *("policy activate", "policy log", "policy rollback", "policy impact", "policy diff"),
        *("config show", "config schema", "audit search", "audit show", "audit report", "token new"),
        *(
            "budget list",
            "budget show",
            "budget set",
            "budget report",
            "audit verify",
            "audit receipt",
            "audit export",
            "audit rotate-key",
        ),
        *(
            "audit backup",
            "audit restore",
            "audit cosign",
            "approve",
            "audit hold place",
            "audit hold lift",
            "audit hold list",
            "audit erase",
            "audit retain",
        ),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_misspelt_command_names_the_right_one(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path[:-1], misspelt(path[-1])]) == failures.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert path[-1] in told.err
    assert f"remedy: see `{' '.join(('policyd', *path[:-1]))} --help`" in told.err


@pytest.mark.parametrize(
    ("path", "flag"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_a_misspelt_flag_names_the_right_one(
    path: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, misspelt(flag), "x"]) == failures.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert flag in told.err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_parses(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == failures.DONE
    assert "Example:" in capsys.readouterr().out
    command = COMMANDS[path]
    example = " ".join((command.help or "").partition("Example:")[2].split()).partition(">")[0]
    written = shlex.split(example)
    start = written.index("policyd")
    assert tuple(written[start + 1 : start + 1 + len(path)]) == path
    command.make_context("policyd", written[start + 1 + len(path) :])


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_flag_says_what_it_does(path: tuple[str, ...]) -> None:
    silent = [parameter.name for parameter in COMMANDS[path].params if not parameter.help]
    assert silent == []


def test_the_reference_page_is_what_the_commands_say(repository: Path) -> None:
    page = runpy.run_path(str(repository / "scripts" / "cli-reference"))["page"]()
    written = (repository / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == page, "run scripts/cli-reference > docs/reference/cli.md"


def test_a_typing_mistake_loads_nothing_heavy(repository: Path) -> None:
    asked = (
        "import sys; from policyd.cli.main import run; run(['deside']); run(['--help']);"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60, cwd=repository
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("level", [["decide"], ["policy", "check"]], ids=" ".join)
def test_a_choice_names_what_may_be_chosen(level: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*level, "--engine", "oppa", *(["x"] if level == ["decide"] else [])]) == failures.USAGE
    assert "'oppa' is not one of 'embedded', 'opa'" in capsys.readouterr().err


def test_nothing_at_all_gives_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == failures.USAGE
    told = capsys.readouterr()
    assert "decide" in told.out + told.err


def test_an_error_is_told_with_findings_remedy_and_page(capsys: pytest.CaptureFixture[str]) -> None:
    error = NotFound("two faults", findings=[Finding("a.yaml:3", "no"), Finding("", "two faults")])
    assert failures.tell(error) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: two faults",
        "a.yaml:3: no",
        "remedy: check the identifier; list what exists first",
        "see: docs/errors/not_found.md",
    ]


def test_an_unforeseen_failure_is_one_line_and_no_allow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.delenv("POLICYD_DEBUG", raising=False)
    monkeypatch.setattr("policyd.cli.workload_files.read_request", broken)
    assert run(["decide", "x.yaml"]) == failures.FAILURE
    told = capsys.readouterr().err
    assert told.startswith("error: ZeroDivisionError: by zero\nremedy: nothing was allowed")
    assert "Traceback" not in told
    monkeypatch.setenv("POLICYD_DEBUG", "1")
    assert run(["decide", "x.yaml"]) == failures.FAILURE
    assert "Traceback" in capsys.readouterr().err


def test_failures_of_tasks_are_told_by_the_error_of_policyd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any) -> Any:
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [NotFound("no such thing")])])

    monkeypatch.setattr("policyd.cli.workload_files.read_request", broken)
    assert run(["decide", "x.yaml"]) == NotFound.exit_code
    assert "error: no such thing" in capsys.readouterr().err


def test_settings_name_the_nearest_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policyd.yaml"
    path.write_text("engine:\n  wokers: 2\n")
    assert run(["config", "show", "--config", str(path)]) == failures.USAGE
    assert f"{path}:2: unknown key `engine.wokers`; did you mean `workers`?" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.setenv("POLICYD_PROT", "1")
    assert run(["config", "show"]) == failures.USAGE
    assert "did you mean `port`?" in capsys.readouterr().err


def test_flags_win_over_environment_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    path = tmp_path / "policyd.yaml"
    path.write_text("data_dir: from-file\nport: 1\nengine: {kind: opa}\n")
    monkeypatch.setenv("POLICYD_PORT", "2")
    arguments = ["config", "show", "--config", str(path), "--data-dir", "from-flag", "--output", "json"]
    assert run(arguments) == failures.DONE
    shown = json.loads(capsys.readouterr().out)
    assert (shown["data_dir"], shown["port"], shown["engine"]["kind"]) == ("from-flag", 2, "opa")
    assert run([*arguments, "--engine", "embedded"]) == failures.DONE
    assert json.loads(capsys.readouterr().out)["engine"]["kind"] == "embedded"


def test_a_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run(["config", "schema"]) == failures.DONE
    assert json.loads(capsys.readouterr().out)["properties"]["data_dir"]["description"]


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from policyd.cli import terminal

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for no_color, expected in ((None, True), ("1", False)):
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        terminal.data().print("x", style=terminal.BAD)
        assert ("\x1b[" in screen.getvalue()) is expected
