"""The forms of ``policyd audit export`` that other programs read: OCSF events, Parquet files, records of a collector.

Rules: what is in the other form is a copy and no evidence, which is the export as ``jsonl``; nothing is written over;
a copy says up to where it went, so that the next one goes on there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from policyd.cli.terminal import say

if TYPE_CHECKING:
    from policyd.cli.options import Access
    from policyd.services.exports import Sink, Source
    from policyd.settings import Settings


ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT")


class ExportFormat(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    OCSF = "ocsf"
    PARQUET = "parquet"
    OTLP = "otlp"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a copy goes, and which part of which log it is."""

    form: ExportFormat
    file: Path | None
    folder: Path | None
    endpoint: str | None
    log: str | None
    start: int
    last: int | None

    def check(self) -> None:
        """Raise ``BadParameter`` for flags that do not go together."""
        if self.form is ExportFormat.PARQUET and self.folder is None:
            raise typer.BadParameter("parquet is a file for each range of entries: give --folder DIR")
        if self.folder is not None and self.form is not ExportFormat.PARQUET:
            raise typer.BadParameter(f"--folder is for parquet, not for {self.form}")
        if self.endpoint is not None and self.form is not ExportFormat.OTLP:
            raise typer.BadParameter(f"--endpoint is for otlp, not for {self.form}")
        if self.form is ExportFormat.OTLP and self.endpoint is None and not any(map(os.environ.get, ENDPOINTS)):
            raise typer.BadParameter(f"where does the collector answer? give --endpoint URL, or set {ENDPOINTS[0]}")
        if self.file is not None and self.form in (ExportFormat.PARQUET, ExportFormat.OTLP):
            raise typer.BadParameter(f"--file is for jsonl and ocsf, not for {self.form}")
        if self.form is ExportFormat.JSONL and (self.log is not None or self.last is not None):
            raise typer.BadParameter("jsonl is the whole log as far as it is signed: --to and --log are for the copies")


async def copy_of_server(target: Target, access: Access) -> None:
    """Copy the log of a server."""
    from policyd.cli.server_entries import ServerEntries
    from policyd.cli.servers import server_at

    with server_at(access) as client:
        await _copied(target, await ServerEntries.open(client, access.address or "", target.log, target.start))


async def copy_out(target: Target, settings: Settings) -> None:
    """Copy the log of a data directory."""
    from policyd.services.exports import chosen_log
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    reader = await LogReader.open(directory_of(settings), deadline_ms=settings.audit.search_deadline_ms)
    try:
        await _copied(target, await chosen_log(reader, target.log))
    finally:
        await reader.close()


async def _copied(target: Target, source: Source) -> None:
    """With a bar for a person."""
    from policyd.cli.audit_report import progress
    from policyd.services.exports import copy

    with _sink(target, source.origin) as sink, progress("copying entries") as shown:
        following = await copy(source, sink, (target.start, target.last), shown)
    say(f"copied {following - target.start} entries of {source.origin}; the next export starts with --from {following}")


@contextmanager
def _sink(target: Target, origin: str) -> Iterator[Sink]:
    from policyd.services.exports import Collected, OcsfLines, parquet_files

    if target.form is ExportFormat.PARQUET:
        assert target.folder is not None
        yield parquet_files(target.folder, target.start)
    elif target.form is ExportFormat.OTLP:
        from connectors.otel_entries import OtlpCollector
        from policyd.services.exports import product_version

        yield Collected(OtlpCollector(target.endpoint, product_version()), origin, target.start)
    elif target.file is None:
        yield OcsfLines(sys.stdout.buffer, origin, target.start)
    else:
        from policyd.errors import RequestError

        try:
            file = target.file.open("ab" if target.start else "xb")
        except FileExistsError:
            remedy = "name another file, or append to this one with --from INDEX"
            raise RequestError(f"{target.file} is there already", remedy=remedy) from None
        except OSError as error:
            raise RequestError(f"{target.file} cannot be written: {error.strerror}", remedy="name another") from None
        with file:
            yield OcsfLines(file, origin, target.start)
