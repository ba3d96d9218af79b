"""``policyd policy impact``: what a candidate would have changed of the decisions that were logged."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from policyd.cli import failures
from policyd.cli.named_revisions import Kind
from policyd.cli.options import ConfigFlag, DataDirFlag, EngineFlag, FleetFlag, OutputFlag, PoliciesFlag, settings_of
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.cli.impact_parts import Question
    from policyd.services.impact import ImpactReport
    from policyd.settings import Settings

MERGE: Final = "merge"
REPORT_MAX_BYTES: Final = 64 * 1024 * 1024
_AGO: Final = re.compile(r"(?P<count>[0-9]{1,5})(?P<unit>[mhdw])")
_UNITS_US: Final = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
_SHARD: Final = re.compile(r"(?P<part>[0-9]{1,4})/(?P<parts>[0-9]{1,4})")
_PERCENT: Final = re.compile(r"(?P<whole>[0-9]{1,3})(?:\.(?P<rest>[0-9]{1,4}))?\s*%?")


def impact(
    revision: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REV]",
            help="Folder, bundle, digest or commit; without it the revision in use. Or: merge FILE…",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="What REV is a revision of.")] = Kind.POLICY,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Begin of the window: 7d, 12h, or 2026-11-01T00:00:00Z.")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Its end, in the same forms; without it now.")
    ] = None,
    max_flips: Annotated[
        str | None,
        typer.Option("--max-flips", metavar="PERCENT", help="End with 3 when more flip, or a hard rule is lifted."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Only this part of the window, for one of N machines.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", "-j", min=1, max=64, help="Processes; without it one a processor.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Forget an interrupted run of the same question.")] = False,
    store: Annotated[bool, typer.Option("--store", help="Keep the report in the log, with the revision.")] = False,
    output: OutputFlag = Output.TABLE,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    data_dir: DataDirFlag = None,
    engine: EngineFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Replay logged decisions on a candidate, and count what flips, by tenant, model, pool, rule and country.

    A candidate for the policies is tried beside the fleet in use, and with --kind fleet the other way round. An
    interrupted run goes on when it is asked again. Parts of a window, printed with -o json, are joined by merge.

    Example: policyd policy impact main:policies --since 7d --max-flips 1%
    """
    from policyd.cli.impact_tables import draw
    from policyd.services.impact import ImpactLimits, impact_gate

    given = revision or []
    limit_ppm = None if max_flips is None else _ppm(max_flips)
    settings = settings_of(config, policies=policies, fleet=fleet, data_dir=data_dir, engine=engine)
    if given[:1] == [MERGE]:
        report = _merged(given[1:])
    else:
        if len(given) > 1:
            raise typer.BadParameter("name one revision; to join reports, begin with merge", param_hint="REV")
        report = asyncio.run(_run(settings, kind, given[0] if given else None, (since, until), shard, processes, anew))
    if store and report.complete:
        asyncio.run(_store(settings, kind, report))
    gate = impact_gate(report, ImpactLimits(limit_ppm if limit_ppm is not None else 1_000_000))
    document = {**report.to_json(), "gate": gate.to_json()} if limit_ppm is not None else report.to_json()
    emit(document, output, lambda console: draw(report, gate if limit_ppm is not None else None, console))
    if not report.complete:
        raise typer.Exit(failures.INTERRUPTED)
    if limit_ppm is not None and (not gate.passed or report.needs_approval):
        raise typer.Exit(failures.FOUND)


async def _run(
    settings: Settings,
    kind: Kind,
    name: str | None,
    times: tuple[str, str | None],
    shard: str | None,
    processes: int | None,
    anew: bool,
) -> ImpactReport:
    from policyd.cli.impact_parts import planned
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    question = _question(settings, kind, name, times, shard)
    reader = await LogReader.open(directory_of(settings))
    try:
        # A candidate that is none is told before a process is started for it.
        await question.policies.policies(reader)
        await question.fleet.fleet(reader)
        parts = await planned(settings, reader, question, processes or len(os.sched_getaffinity(0)), anew=anew)
    finally:
        await reader.close()
    if parts.resumed:
        say("going on with a run that was interrupted; --anew begins again")
    report = await parts.run(settings)
    if report.complete:
        parts.forget()
    else:
        say("interrupted: the same command goes on from here")
    return report


def _question(
    settings: Settings, kind: Kind, name: str | None, times: tuple[str, str | None], shard: str | None
) -> Question:
    from policyd.cli.impact_parts import Question
    from policyd.cli.named_revisions import named_revision
    from policyd.services.clock import now_us

    since, until = times
    part = _shard(shard)
    if part[1] > 1 and (_AGO.fullmatch(since) or until is None or _AGO.fullmatch(until)):
        raise typer.BadParameter(
            "give --since and --until as times, so that all machines read the same window", param_hint="--shard"
        )
    now = now_us()
    window = (_moment(since, now, "--since"), now if until is None else _moment(until, now, "--until"))
    if window[0] >= window[1]:
        raise typer.BadParameter("the window ends before it begins", param_hint="--since")
    policies, fleet = named_revision(settings, Kind.POLICY, None), named_revision(settings, Kind.FLEET, None)
    live = (policies.digest, fleet.digest)
    candidate = named_revision(settings, kind, name)
    if kind is Kind.POLICY:
        policies = candidate
    else:
        fleet = candidate
    return Question(policies, fleet, live, since, until, window, part, name or "in use")


def _merged(files: Sequence[str]) -> ImpactReport:
    import orjson

    from policyd.errors import RequestError
    from policyd.services.impact import ImpactReport, merged

    if not files:
        raise typer.BadParameter("name the reports to join: merge FILE…", param_hint="REV")
    reports = []
    for name in files:
        try:
            with Path(name).open("rb") as file:
                reports.append(ImpactReport.from_json(orjson.loads(file.read(REPORT_MAX_BYTES))))
        except OSError as error:
            raise RequestError(f"{name} cannot be read: {error.strerror}") from error
        except (ValueError, RequestError) as error:
            raise RequestError(
                f"{name}: {getattr(error, 'detail', 'this is no JSON')}",
                remedy="make each part by `policyd policy impact … --shard I/N -o json`",
            ) from error
    return merged(reports)


async def _store(settings: Settings, kind: Kind, report: ImpactReport) -> None:
    from policyd.bootstrap import writing
    from policyd.services.clock import now_us
    from policyd.services.impact import impact_entry

    async with writing(settings) as (_, committer, _):
        entry, blob = impact_entry(report, kind.value, now_us())
        position = await committer.submit(entry, [blob])
    say(f"kept in the log: entry {position.index}, {entry.id}")


def _moment(text: str, now_us: int, flag: str) -> int:
    from policyd.services.clock import from_rfc3339

    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now_us - int(ago["count"]) * _UNITS_US[ago["unit"]])
    try:
        return from_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a time such as 2026-11-01T00:00:00Z nor so long ago as 7d or 12h", param_hint=flag
        ) from None


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    found = _SHARD.fullmatch(text)
    if found is None or not 1 <= int(found["part"]) <= int(found["parts"]):
        raise typer.BadParameter(f"{text!r} is no part such as 1/4", param_hint="--shard")
    return int(found["part"]), int(found["parts"])


def _ppm(text: str) -> int:
    """Parts per million of a percentage, which has at most four places after the point."""
    found = _PERCENT.fullmatch(text.strip())
    if found is None or int(found["whole"]) > 100:
        raise typer.BadParameter(f"{text!r} is no percentage such as 1% or 0.5%", param_hint="--max-flips")
    return int(found["whole"]) * 10_000 + int((found["rest"] or "").ljust(4, "0"))
