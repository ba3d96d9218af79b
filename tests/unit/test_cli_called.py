"""The command that is called is described alone, and as it is among all the others."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from policyd.cli.main import _called, app

WHOLE: Any = get_command(app)


def described(command: Any) -> tuple[Any, ...]:
    """What a person sees of a command and of those below it."""
    flags = [(each.name, each.opts, each.help) for each in command.params]
    below = {name: described(each) for name, each in getattr(command, "commands", {}).items()}
    return command.name, command.help, flags, below


@pytest.mark.parametrize("name", WHOLE.commands)
def test_a_command_is_the_same_alone(name: str) -> None:
    alone: Any = get_command(_called([name, "--help"]))
    assert list(alone.commands) == [name]
    assert described(alone.commands[name]) == described(WHOLE.commands[name])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["polciy"], ["", "serve"]])
def test_without_a_command_there_are_all(arguments: list[str]) -> None:
    assert _called(arguments) is app
