"""How a command ends when it does not succeed: one shape on stderr, one table of exit codes, never a stack trace.

    0  done, or allow          2  usage: flags, settings or a request that cannot be read
    1  failure                 3  deny, or tests or checks that found something
                               4  audit verification failed

    and as shells count signals: 130 interrupted, 141 the reader of the output has gone

Rules: a person reads what is wrong, where, and what to do; ``POLICYD_DEBUG=1`` adds the stack trace of an unexpected
failure; whatever happened, it says that nothing was allowed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from policyd.cli.terminal import say

if TYPE_CHECKING:
    from policyd.errors import PolicydError

DONE: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
FOUND: Final = 3
"""A deny, or a check or test that found something."""
INTERRUPTED: Final = 130
UNREAD: Final = 141
"""The reader of stdout has gone, as in ``policyd … | head``: not 0, which a script takes for an allow."""


def tell(error: PolicydError) -> int:
    """Print an error of policyd and give its exit code."""
    say(f"error: {error.detail}")
    # A single fault is often the whole detail: it is not said twice.
    say(*(str(finding) for finding in error.findings if finding.message not in error.detail))
    say(f"remedy: {error.remedy_text}", f"see: docs/errors/{error.code}.md")
    return error.exit_code


def tell_usage(error: Any) -> int:
    """Print a usage error of the command line and give its exit code."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "policyd"
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.format_message())
        return USAGE
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    say(f"error: {message[:1].lower()}{message[1:]}", f"remedy: see `{path} --help`")
    return USAGE


def tell_unexpected(error: BaseException) -> int:
    """Print one line for a failure that nobody foresaw, and its trace when ``POLICYD_DEBUG`` is set."""
    if os.environ.get("POLICYD_DEBUG"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    say(
        f"error: {type(error).__name__}: {error}",
        "remedy: nothing was allowed; run again with POLICYD_DEBUG=1 for the trace, and report it",
        "see: docs/errors/internal.md",
    )
    return FAILURE
