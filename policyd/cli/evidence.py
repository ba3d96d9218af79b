"""``policyd audit verify``, ``export`` and ``receipt``: the log as evidence, beside a server or without one.

Rules: what is wrong is said with its place, and the exit code is 4; what is right is said with how far that goes; the
checkpoint that a server showed last is kept for the next time, and is only replaced by one that continues it.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.export_formats import ExportFormat, Target, copy_of_server, copy_out
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
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from audit.fold import Verdict
    from policyd.settings import Settings

KeysFlag = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Public key of the log (name+id+base64), or a file that holds it."),
]
NOTE_MAX_BYTES = 64 * 1024
RECEIPT_MAX_BYTES = 256 * 1024


def verify(
    export: Annotated[Path | None, typer.Argument(metavar="[EXPORT]", help="An export; without it the log.")] = None,
    receipt: Annotated[Path | None, typer.Option(metavar="FILE", help="A receipt to verify, offline.")] = None,
    leaf_hash: Annotated[
        str | None, typer.Option(metavar="HEX", help="Leaf hash that the decision came with, for --receipt.")
    ] = None,
    key: KeysFlag = None,
    witness: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Public key of a witness.")] = None,
    anchor: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A checkpoint that you have kept.")] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the last checkpoint of --server is kept.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Verify the log, an export, a receipt, or that the log of a server only grew. Exit code 4 when it is wrong.

    Example: policyd audit verify --receipt decision.tlog-proof --key log.pub
    """
    keys = key or []
    if sum(given is not None for given in (export, receipt, server)) > 1:
        raise typer.BadParameter("give one of EXPORT, --receipt and --server")
    if receipt is not None:
        document = _verified_receipt(receipt, keys, leaf_hash)
    elif server is not None:
        document = _followed(Access(server, token_file, ca_file), keep, keys)
    else:
        settings = None if export is not None else settings_of(config, data_dir=data_dir)
        document = _verified(export, settings, keys, witness or [], anchor or [])
    emit(document, output, lambda console: _draw(document, console))


def export(
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write here, and go on where the file ends; else to stdout.")
    ] = None,
    start: Annotated[
        int, typer.Option("--from", min=0, metavar="INDEX", help="First entry; a jsonl file goes on by itself.")
    ] = 0,
    last: Annotated[int | None, typer.Option("--to", min=0, metavar="INDEX", help="Last entry of a copy.")] = None,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="jsonl is evidence; the others are copies for other programs.")
    ] = ExportFormat.JSONL,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where parquet files go.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Where otlp goes; without it the OTEL_* variables say.")
    ] = None,
    log: Annotated[str | None, typer.Option(metavar="NAME", help="Which log, when a database has several.")] = None,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Export the log as JSON lines with all that is needed to verify it offline, or copy it in another form.

    Example: policyd audit export --file log.jsonl
    """
    from policyd.services.evidence import exported_from

    target = Target(form, file, folder, endpoint, log, start, last)
    target.check()
    if form is not ExportFormat.JSONL:
        import asyncio

        if server is not None:
            asyncio.run(copy_of_server(target, Access(server, token_file, ca_file)))
        else:
            asyncio.run(copy_out(target, settings_of(config, data_dir=data_dir)))
        return
    if start and file is not None:
        raise typer.BadParameter("--from is for stdout: a file goes on where it ends")
    if server is not None:
        before, after = _export_of(Access(server, token_file, ca_file), file, start)
    else:
        before, after = exported_from(settings_of(config, data_dir=data_dir), file, start, sys.stdout.buffer)
    if file is not None:
        say(f"{file} holds {after} entries" + (f", {after - before} of them new" if before else ""))


def _export_of(access: Access, file: Path | None, start: int) -> tuple[int, int]:
    """The export of a server's log, page by page."""
    from audit.checkpoint import Checkpoint
    from audit.export import joined_lines
    from audit.note import parse_note
    from policyd.cli.servers import server_at
    from policyd.client import history
    from policyd.services.evidence import appended, proving

    with server_at(access) as client, proving(str(file or access.address)):
        origin = Checkpoint.parse(parse_note(client.send(history.checkpoint())).text).origin

        def page(at: int) -> bytes:
            return client.send(history.export_page(at))

        if file is not None:
            return appended(file, origin, lambda so_far: joined_lines(page, 0, so_far))
        for line in joined_lines(page, start):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return start, start


def receipt(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="Id of an entry.")],
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Print the receipt of an entry: the proof that it is in the log (c2sp.org/tlog-proof@v1).

    Example: policyd audit receipt 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b > decision.tlog-proof
    """
    import asyncio

    from policyd.cli.servers import server_at

    if server is not None:
        with server_at(Access(server, token_file, ca_file)) as client:
            found = client.receipt(entry_id)
    else:
        found = asyncio.run(_receipt(settings_of(config, data_dir=data_dir), entry_id))
    sys.stdout.buffer.write(found)
    sys.stdout.buffer.flush()


async def _receipt(settings: Settings, entry_id: str) -> bytes:
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader
    from policyd.services.proofs import receipt as receipt_of
    from policyd.services.witnessing import words_kept

    directory = directory_of(settings)
    reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    try:
        return (await receipt_of(reader, entry_id, lambda: words_kept(directory.path))).encode()
    finally:
        await reader.close()


def _verified(
    export: Path | None,
    settings: Settings | None,
    keys: Sequence[str],
    witnesses: Sequence[str],
    anchors: Sequence[Path],
) -> dict[str, Any]:
    from policyd.services.evidence import anchors_of, failure_of, keys_of, verify_directory, verify_file
    from policyd.services.log_place import directory_of
    from policyd.services.witnessing import witnesses_of

    known, seen = keys_of(keys), keys_of(witnesses)
    held = anchors_of(anchors, [*known, *seen])
    if export is not None:
        verdict = verify_file(export, known, seen, held)
    else:
        assert settings is not None
        asked = [each.key for each in witnesses_of(settings.audit)]
        verdict = verify_directory(directory_of(settings), known, [*seen, *asked], held)
    failure = failure_of(verdict, export=export is not None)
    if failure is not None:
        raise failure
    return _verdict_json(verdict)


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "log": verdict.origin,
        "from": verdict.first,
        "entries": verdict.entries,
        "checkpoints": verdict.checkpoints,
        "covered": verdict.covered,
        "keys": [each.text for each in verdict.keys],
        "key_given": verdict.key_given,
        "anchors": [{"size": each.size, "by": each.who} for each in verdict.anchors],
        "accounts": verdict.accounts,
        "changes_elsewhere": verdict.elsewhere,
        "seen": [{"log": each.origin, "size": each.size} for each in verdict.seen],
        "gaps": [gap.to_json() for gap in verdict.gaps],
        "changes_removed": verdict.passed_over,
        "removed": verdict.removed,
        "warrants": [warrant.to_json() for warrant in verdict.warrants],
        "warrants_total": verdict.warrants_total,
        "word": verdict.word,
    }


def _verified_receipt(path: Path, keys: Sequence[str], leaf_hash: str | None) -> dict[str, Any]:
    import orjson

    from audit.errors import KeyInvalid, ProofInvalid
    from audit.proof import Receipt
    from policyd.errors import ProofRefused
    from policyd.services.evidence import keys_of

    known = keys_of(keys)
    if not known:
        raise typer.BadParameter("a receipt is verified with the key of its log: --key")
    try:
        leaf = bytes.fromhex(leaf_hash) if leaf_hash is not None else None
    except ValueError:
        raise typer.BadParameter("--leaf-hash is hex, as `audit.leaf_hash` of a decision") from None
    try:
        found = Receipt.parse(_read(path, RECEIPT_MAX_BYTES))
        opened = found.verify(known, expected_leaf=leaf)
    except (ProofInvalid, KeyInvalid) as error:
        raise ProofRefused(f"{path}: {error}") from error
    try:
        entry = orjson.loads(found.extra) if found.extra is not None else None
    except orjson.JSONDecodeError:
        entry = None
    told = entry if isinstance(entry, dict) else {}
    return {
        "log": opened.checkpoint.origin,
        "index": found.index,
        "size": opened.checkpoint.size,
        "keys": [each.text for each in opened.keys],
        "entry": {name: value for name, value in told.items() if name not in ("salt", "v")},
    }


def _followed(access: Access, keep: Path | None, keys: Sequence[str]) -> dict[str, Any]:
    """The log of a server against what it showed last time; the new checkpoint takes the place of the old one."""
    from audit.checkpoint import Checkpoint
    from audit.note import parse_note
    from audit.signer import write_durably
    from policyd.cli.servers import server_at
    from policyd.errors import ConfigError
    from policyd.services.evidence import keys_of

    path = keep or _kept_path(access.address or "")
    before = _read(path, NOTE_MAX_BYTES) if path.exists() else None
    with server_at(access) as client:
        shown = client.follow_log(before, keys=[each.text for each in keys_of(keys)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, shown)
    except OSError as error:
        raise ConfigError(f"the checkpoint cannot be kept in {path}: {error.strerror}") from error
    found = Checkpoint.parse(parse_note(shown).text)
    kept = None if before is None else Checkpoint.parse(parse_note(before).text)
    return {
        "log": found.origin,
        "size": found.size,
        "seen_before": None if kept is None else kept.size,
        "signed": bool(keys),
        "kept_in": str(path),
    }


def _kept_path(address: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "policyd" / "checkpoints" / sha256(address.rstrip("/").encode()).hexdigest()[:32]


def _read(path: Path, limit_bytes: int) -> bytes:
    from policyd.errors import RequestError

    try:
        with path.open("rb") as file:
            return file.read(limit_bytes + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def _draw(document: Mapping[str, Any], console: Console) -> None:
    from policyd.cli.terminal import pairs

    if "word" in document:
        console.print(pairs(_verdict_words(document)))
    elif "index" in document:
        console.print(pairs(_receipt_words(document)))
    else:
        before = document["seen_before"]
        grown = "seen for the first time" if before is None else f"continues the {before} entries that were seen before"
        signed = "by the given key" if document["signed"] else "not checked: no --key was given"
        words = {"entries": f"{document['size']}: {grown}", "signed": signed, "kept in": document["kept_in"]}
        console.print(pairs({"log": document["log"], **words}))


def _key_name(text: str) -> str:
    """Name and id of a key, which is how signatures name it."""
    return "+".join(text.split("+", 2)[:2])


def _verdict_words(document: Mapping[str, Any]) -> dict[str, str]:
    entries, first = document["entries"], document["from"]
    span = f"{first} to {first + entries - 1}" if entries else "none"
    open_entries = first + entries - document["covered"]
    named = ", ".join(_key_name(each) for each in document["keys"])
    return {
        "log": document["log"],
        "entries": f"{span}: each is what was recorded",
        "checkpoints": str(document["checkpoints"])
        + (f"; {open_entries} entries are newer than the last" if open_entries else ", the last over all entries"),
        "signed by": named + ("" if document["key_given"] else ", which the log itself names"),
        **_ledger_words(document),
        **{f"gap at {gap['index']}": gap["words"] for gap in document["gaps"]},
        **_removed_words(document),
        "how far": document["word"],
    }


def _removed_words(document: Mapping[str, Any]) -> dict[str, str]:
    if not document["removed"]:
        return {}
    newest = document["warrants"][-1]
    told = f"{document['removed']} by retention, under {document['warrants_total']} warrants; the last is entry "
    return {
        "bodies removed": f"{told}{newest['index']}: {newest['bodies']} of {newest['oldest']} to {newest['newest']}"
    }


def _ledger_words(document: Mapping[str, Any]) -> dict[str, str]:
    if not document["accounts"]:
        return {}
    other = document["changes_elsewhere"]
    gone = document["changes_removed"]
    more = f"; {other} more changes are in other logs" if other else ""
    more += f"; {gone} changes were in removed bodies" if gone else ""
    return {"budgets": f"{document['accounts']} accounts: every change follows the one before{more}"}


def _receipt_words(document: Mapping[str, Any]) -> dict[str, str]:
    entry = document["entry"]
    told = {"id": "decision", "outcome": "outcome", "time": "time", "principal": "asked by"}
    return {
        "log": document["log"],
        "entry": f"{document['index']}, in the tree of {document['size']}",
        "signed by": ", ".join(_key_name(each) for each in document["keys"]),
        **{word: str(entry[name]) for name, word in told.items() if name in entry},
    }
