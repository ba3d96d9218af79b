"""``policyd policy approve``: signs an approval of a revision and brings it to the server, in one go or in two.

Rules: what is approved is a change, from what the server says is live to the revision that is named; the key stays
here, and only the signature is sent; a key in an agent or a token signs with ``ssh-keygen`` what ``--out`` has written.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    OutputFlag,
    ServerFlag,
    TokenFileFlag,
    settings_of,
)
from policyd.cli.terminal import Output, emit, pairs, say
from policyd.cli.two_persons import client_of

if TYPE_CHECKING:
    from policyd.revisions.approvals import Approval, Change

FILE_MAX_BYTES: Final = 65_536
DAY_US: Final = 86_400_000_000


class Kind(StrEnum):
    """What a revision is of."""

    POLICY = "policy"
    FLEET = "fleet"


def approve(
    revision: Annotated[str, typer.Argument(metavar="REV", help="Digest, commit, folder or bundle of the revision.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private SSH key without a passphrase, of an allowed signer.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the approval there and send nothing; without --key, what is to sign."),
    ] = None,
    send: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Send what --out has written; its signature may lie beside it as FILE.sig."),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What the revision is of.")] = Kind.POLICY,
    replaces: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="What serves now; without it, as the server says.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long the approval holds.")] = 3,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Approve a revision with a signature of your own, as a change of what serves now.

    With --out and --send, another program signs in between:
    ssh-keygen -Y sign -f KEY -n policyd-approval@v1 FILE

    Example: policyd policy approve main --key ~/.ssh/id_ed25519 --server https://policyd.example
    """
    from policyd.errors import RequestError

    if send is not None and (key is not None or out is not None):
        raise RequestError("--send brings what was signed before, and goes with neither --key nor --out")
    if send is None and key is None and out is None:
        raise RequestError("nothing signs the approval", remedy="name a key with --key, or write it with --out")
    digest = _digest_of(revision, kind, config, data_dir)
    if out is not None and replaces is not None:
        _write(out, _signed(_change(kind, digest, replaces), days, key))
        return
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        if send is not None:
            approval = _read(send, digest)
        else:
            change = _change(kind, digest, replaces or client.revision_approvals(digest)["live"][kind])
            approval = _signed(change, days, key)
            if out is not None:
                _write(out, approval)
                return
        done = client.approve_revision(approval.to_json())
    told = {name: str(value) for name, value in done.items() if name not in ("id", "audit")}
    place = done["audit"]
    shown = {**told, "log": f"entry {place['index']} of {place['log']}"}
    emit({**done}, output, lambda console: console.print(pairs(shown)))


def _digest_of(revision: str, kind: Kind, config: Path | None, data_dir: Path | None) -> str:
    """The digest that is meant: the text itself, or that of the files under this name."""
    import re

    from policyd.bootstrap_sources import SUFFIXES, kept_trees
    from policyd.revisions.named_trees import named_tree

    if re.fullmatch(r"sha256:[0-9a-f]{64}", revision):
        return revision
    settings = settings_of(config, data_dir=data_dir)
    which = "policies" if kind is Kind.POLICY else "fleet"
    source = getattr(settings.sources, which)
    folder = source.path if source is not None else str(getattr(settings, which) or which)
    return named_tree(revision, SUFFIXES[which], kept_trees(settings, which), folder).tree.digest


def _change(kind: Kind, digest: str, replaces: str) -> Change:
    from policyd.revisions.approvals import Change

    return Change(kind.value, digest, replaces)


def _signed(change: Change, days: int, key: Path | None) -> Approval:
    """The approval; without a key it has no signature yet."""
    from policyd.errors import ConfigError
    from policyd.revisions.approvals import NAMESPACE, Approval, expiry, signed_bytes
    from policyd.revisions.sshsig import read_private_key, sign
    from policyd.services.clock import now_us

    expires = expiry(now_us() + days * DAY_US)
    if key is None:
        return Approval(change, expires, "")
    try:
        content = key.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key {key} cannot be read: {error.strerror}") from None
    signature = sign(read_private_key(content, str(key)), signed_bytes(change, expires), NAMESPACE)
    return Approval(change, expires, signature)


def _write(out: Path, approval: Approval) -> None:
    import orjson

    from policyd.errors import RequestError
    from policyd.revisions.approvals import NAMESPACE

    signed = bool(approval.signature)
    try:
        out.write_bytes(orjson.dumps(approval.to_json()) if signed else approval.signed)
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error.strerror}") from None
    if not signed:
        say(f"sign it with: ssh-keygen -Y sign -f KEY -n {NAMESPACE} {out}")
    say(f"send it with: policyd policy approve {approval.change.digest} --send {out}")


def _read(path: Path, digest: str) -> Approval:
    """What ``--out`` has written, with its signature. Raises ``RequestError`` when it is something else."""
    import orjson

    from policyd.errors import RequestError
    from policyd.revisions.approvals import Approval

    beside = path.with_name(f"{path.name}.sig")
    try:
        document: dict[str, Any] = orjson.loads(_content(path))
        if "signature" not in document:
            document["signature"] = _content(beside).decode("ascii")
        approval = Approval.from_json(document)
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise RequestError(f"{path} is nothing that --out has written: {error}") from None
    if approval.change.digest != digest:
        raise RequestError(f"{path} approves {approval.change.digest}, and not {digest}")
    return approval


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_MAX_BYTES)
