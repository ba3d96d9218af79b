"""``policyd token``: bearer tokens for callers. The token is shown once; the file keeps its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from policyd.cli.terminal import say

app = typer.Typer(name="token", help="Bearer tokens: make one for a caller.", no_args_is_help=True)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will hold it; the log shows `token:NAME`.")],
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The file that auth.tokens_file names.")],
    role: Annotated[list[str], typer.Option("--role", help="A role of the Casbin rows, such as developer.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="The tenant; without it, every tenant.")] = None,
    project: Annotated[list[str] | None, typer.Option("--project", help="Projects; without it, all.")] = None,
    environment: Annotated[
        list[str] | None, typer.Option("--environment", help="Environments; without it, all.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3_650, help="Days until it expires.")] = 365,
) -> None:
    """Make a token: its hash and grants are added to FILE, the token itself is printed and kept nowhere.

    Example: policyd token new bank-gateway --file tokens.yaml --role developer --tenant eu-bank > bank-gateway.token
    """
    from policyd.errors import ConfigError
    from policyd.identity.tokens import new_token, parse_tokens
    from policyd.services.clock import now_us, rfc3339

    token, digest = new_token()
    grants = [
        {"role": one, "tenant": tenant, "projects": project, "environments": environment} for one in dict.fromkeys(role)
    ]
    entry = {
        "name": name,
        "sha256": digest,
        "expires_at": rfc3339(now_us() + days * 86_400_000_000),
        "grants": [{key: value for key, value in grant.items() if value} for grant in grants],
    }
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        content = _with(before, entry)
        parse_tokens(content.encode(), str(file))
        _replace(file, content)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the tokens in {file} cannot be written: {error}") from None
    say(f"the hash is in {file}; this is the only time that the token is shown")
    print(token)


def _with(before: str, entry: object) -> str:
    """The file with one entry more: text is added, so that comments and order stay as they are."""
    import json

    # JSON is YAML, so the entry is one line whatever is in its names.
    line = f"  - {json.dumps(entry)}\n"
    if not before.strip():
        return "# Hashes of bearer tokens and what their holders may do; made by `policyd token new`.\ntokens:\n" + line
    return before.rstrip("\n") + "\n" + line


def _replace(file: Path, content: str) -> None:
    """Write the file whole or not at all, readable by its owner only, so that a server never reads half of it."""
    import os

    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)
