"""The ``policyd`` command: which commands there are, and how each of them ends.

Rules: this module imports no part of the product that a command may not need, so that ``--help`` and a typing mistake
answer at once; every command ends with an exit code of ``policyd.cli.failures``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

from policyd.cli import (
    audit,
    audit_report,
    break_even,
    budget,
    compliance,
    config,
    decide,
    demo,
    doctor,
    explain,
    failures,
    fleet,
    policy,
    policy_diff,
    policy_impact,
    pool,
    serve,
    simulate,
    terminal,
    token,
    two_persons,
    waiver,
)
from policyd.errors import PolicydError

app = typer.Typer(
    name="policyd",
    help="Decides on which GPU pools an inference workload may run, in what order and why, and keeps the evidence.",
    epilog="Exit codes: 0 done or allow · 1 failure · 2 usage · 3 deny, or findings · 4 audit verification failed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(decide.decide)
app.command()(explain.explain)
app.command()(simulate.simulate)
app.command()(break_even.break_even)
app.command()(compliance.compliance)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(two_persons.approve)
app.add_typer(pool.app)
app.add_typer(budget.app)
app.add_typer(fleet.app)
policy.app.command()(policy_diff.diff)
policy.app.command()(policy_impact.impact)
app.add_typer(policy.app)
audit.app.command()(audit_report.report)
audit.app.command()(two_persons.erase)
audit.app.add_typer(two_persons.hold)
app.add_typer(waiver.app)
app.add_typer(audit.app)
app.add_typer(config.app)
app.add_typer(token.app)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"policyd {version('policyd')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Flags that stand before any command."""


def _called(arguments: Sequence[str]) -> typer.Typer:
    """The app with no other command than the one that is called, since describing them all takes longer than most
    commands run; the whole app when the first word is none of its commands."""
    called = arguments[0] if arguments else None
    only = copy(app)
    only.registered_commands = [each for each in app.registered_commands if _name_of(each) == called]
    only.registered_groups = [each for each in app.registered_groups if _name_of(each) == called]
    return only if only.registered_commands or only.registered_groups else app


def _name_of(command: CommandInfo | TyperInfo) -> str | None:
    if isinstance(command, TyperInfo):
        return command.typer_instance.info.name if command.typer_instance else None
    return command.name or (command.callback.__name__.replace("_", "-") if command.callback else None)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; prints what went wrong, and lets no exception out."""
    try:
        ended = _called(arguments)(list(arguments), prog_name="policyd", standalone_mode=False)
        sys.stdout.flush()
        return ended if isinstance(ended, int) else failures.DONE
    except PolicydError as error:
        return failures.tell(error)
    except typer.TyperException as error:
        return failures.tell_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return failures.INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Click turns it into an exit of its own
            return _unread()
        raise
    except BaseExceptionGroup as group:
        return _tell_group(group)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person never sees a trace by accident
        return failures.tell_unexpected(error)


def _unread() -> int:
    """The reader of our output has gone (`policyd … | head`): nothing is left to say to it."""
    sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - replaces the dead stream until the process ends
    return failures.UNREAD


def _tell_group(group: BaseExceptionGroup[BaseException]) -> int:
    """A group of failed tasks is told by its first error of policyd, when there is one."""
    ours = group.subgroup(PolicydError)
    first: BaseException | None = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return failures.tell(first) if isinstance(first, PolicydError) else failures.tell_unexpected(group)


def main() -> None:
    """The console script."""
    terminal.speak_utf8()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
