"""``policyd audit backup`` and ``restore``: a copy of the log, and the way back from one that has lost entries.

    restore --from DIR            the files of a backup, in the place of the log; says what is missing
    restore --plan --why TEXT     the plan, on stdout
    restore --make-key NAME       a key for a person, once
    restore --sign KEY PLAN       one person's signature, on stdout
    restore --apply PLAN SIG SIG  the gap entry; the server may start again

Rules: a step that changes the log needs its lock, so that no server runs; whose signatures count is a setting; every
step says which entries are missing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policyd.cli.options import ConfigFlag, DataDirFlag, FleetFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.settings import Settings

SIGNATURE_MAX_BYTES = 64 * 1024


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is not there yet.")],
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Copy the log into a directory and verify the copy, beside a running server or without one.

    Example: policyd audit backup /backup/policyd-2026-03-01
    """
    from policyd.cli.terminal import pairs
    from policyd.services.backup import back_up
    from policyd.services.log_place import directory_of

    document = back_up(directory_of(settings_of(config, data_dir=data_dir)), target)
    words = {name: str(found) for name, found in document.items()}
    emit(document, output, lambda console: console.print(pairs(words)))
    say("the signing key log.key is not in it: keep that apart")


def restore(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PLAN] [SIGNATURE]...", help="The plan, and for --apply the signatures."),
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Put this backup in place.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what is missing and what is presumed spent.")] = False,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why the log is restored, for --plan.")] = "",
    known: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A checkpoint that a client or witness has kept.")
    ] = None,
    make_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key for a person in the file named last.")
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign PLAN with this private key.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply PLAN, with the signatures of two persons.")] = False,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Bring back a log from a backup; what is missing is recorded, with the word of two persons.

    Example: policyd audit restore --apply plan.json alice.sig bob.sig
    """
    given = files or []
    if sum((source is not None, plan, make_key is not None, sign is not None, apply)) != 1:
        raise typer.BadParameter("give one of --from, --plan, --make-key, --sign and --apply")
    if make_key is not None:
        _make_key(make_key, _one(given, "the file for the key"))
        return
    if sign is not None:
        _sign(sign, _one(given, "the plan"))
        return
    settings = settings_of(config, data_dir=data_dir, fleet=fleet)
    if source is not None:
        _put_back(settings, source, known or [])
    elif plan:
        _plan(settings, known or [], why)
    else:
        _apply(settings, given)


def _one(files: Sequence[Path], what: str) -> Path:
    if len(files) != 1:
        raise typer.BadParameter(f"name one file: {what}")
    return files[0]


def _make_key(name: str, path: Path) -> None:
    from audit.errors import KeyInvalid
    from audit.signer import open_signer
    from policyd.errors import RequestError

    if path.exists():
        raise RequestError(f"{path} is there already")
    try:
        typer.echo(open_signer(path, name, create=True).key.text)
    except KeyInvalid as error:
        raise RequestError(str(error)) from error
    say(f"{path} is the secret of {name}; the line above belongs into audit.restore_keys_file")


def _sign(key: Path, plan: Path) -> None:
    from audit.errors import KeyInvalid
    from audit.gap import approve
    from audit.record import digest
    from audit.signer import open_own_signer
    from policyd.errors import AuditKeyUnusable
    from policyd.services.restoring import PLAN_MAX_BYTES, read_plan

    content = _read(plan, PLAN_MAX_BYTES)
    document = read_plan(content)
    try:
        note = approve(open_own_signer(key), document["log"], digest(content))
    except KeyInvalid as error:
        raise AuditKeyUnusable(str(error)) from error
    first, last = document["lost"]
    say(f"signed: {document['log']} goes on without entries {first} to {last}; plan {digest(content)}")
    sys.stdout.buffer.write(note)
    sys.stdout.buffer.flush()


def _put_back(settings: Settings, backup: Path, known: Sequence[Path]) -> None:
    from policyd.services.backup import put_back
    from policyd.services.log_place import directory_of
    from policyd.services.restoring import missing

    with directory_of(settings) as directory:
        document = put_back(directory, backup)
        size, beyond = missing(directory, known)
    if document["set_aside"] is not None:
        say(f"what was there is in {document['set_aside']}")
    if beyond is None:
        say(f"the log has {size} entries, and no known checkpoint is over more: start the server")
        return
    say(
        f"entries {size} to {beyond.checkpoint.size - 1} are missing: {beyond.where} has seen them; "
        "the server does not start before `policyd audit restore --plan`, two signatures and --apply"
    )


def _plan(settings: Settings, known: Sequence[Path], why: str) -> None:
    from audit.record import digest
    from policyd import bootstrap
    from policyd.ledger.chart import chart_of
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.log_place import directory_of
    from policyd.services.restoring import plan, read_plan

    content = plan(directory_of(settings), known, chart_of(load_fleet(bootstrap.fleet_path(settings))), why)
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
    document = read_plan(content)
    first, last = document["lost"]
    say(
        f"entries {first} to {last} are missing; {len(document['presumed'])} budgets are presumed spent to their limits"
    )
    say(f"plan {digest(content)}; write smaller figures for `presumed` where you know them, before anybody signs")


def _apply(settings: Settings, files: Sequence[Path]) -> None:
    from policyd.errors import ConfigError
    from policyd.services.evidence import keys_of
    from policyd.services.log_place import directory_of
    from policyd.services.restoring import PLAN_MAX_BYTES, applied

    if len(files) < 3:
        raise typer.BadParameter("name the plan, and the signatures of two persons")
    keys = settings.audit.restore_keys_file
    if keys is None:
        raise ConfigError(
            "nobody may restore a log: audit.restore_keys_file is not set",
            remedy="name a file with the public keys of the persons; `policyd audit restore --make-key` makes them",
        )
    content = _read(files[0], PLAN_MAX_BYTES)
    signatures = [_read(path, SIGNATURE_MAX_BYTES) for path in files[1:]]
    with directory_of(settings) as directory:
        index = applied(directory, content, signatures, keys_of([str(keys)]), settings.audit.durability)
    say(f"entry {index} says what was lost and who let the log go on; start the server")


def _read(path: Path, limit_bytes: int) -> bytes:
    from policyd.errors import RequestError

    try:
        with path.open("rb") as file:
            found = file.read(limit_bytes + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    if len(found) > limit_bytes:
        raise RequestError(f"{path} is longer than {limit_bytes} bytes")
    return found
