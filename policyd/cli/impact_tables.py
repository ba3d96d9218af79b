"""An impact report for a person: what flips, where, and decisions to open.

Rules: what needs a person stands first and last; rows without a flip are counted and not shown; nothing is cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyd.cli import words
from policyd.cli.listing import Column, draw_rows
from policyd.cli.terminal import BAD, CAREFUL, GOOD, QUIET
from policyd.services.clock import rfc3339
from policyd.services.impact import FLIPS, NOT_REPLAYED, PPM, Example, ImpactReport, Row, share, sorted_rows

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.revisions.gates import GateResult

ROWS_SHOWN_MAX: Final = 15
EXAMPLES_SHOWN_MAX: Final = 12
CHANGE_WORDS: Final = {
    "allow_to_deny": "allow → deny",
    "deny_to_allow": "deny → allow",
    "first_choice": "other first choice",
    "order": "other pools behind it",
    "denied_by": "denied for another reason",
    "score": "other scores or costs",
}
_TITLES: Final = {
    "rule": "By rule that took a pool away, or had kept it away",
    "tenant": "By tenant",
    "model": "By model",
    "pool": "By first choice, lost or won",
    "country": "By country of a first choice, lost or won",
}


def draw(report: ImpactReport, gate: GateResult | None, console: Console) -> None:
    """The whole report."""
    _head(report, console)
    if report.replayed:
        _changes(report, console)
    for dimension, title in _TITLES.items():
        _table(dimension, title, report, console)
    if report.rows_left_out:
        console.print(f"Tables are full: {report.rows_left_out:,} times a value found no row.", style=CAREFUL)
    _examples(report, console)
    _verdict(report, gate, console)


def _head(report: ImpactReport, console: Console) -> None:
    candidate = report.candidate
    policy = words.revision(candidate.policy_commit, candidate.policy_digest)
    fleet = words.revision(candidate.fleet_commit, candidate.fleet_digest)
    console.print(f"Impact of {candidate.label}: policies {policy}, fleet {fleet}", style="bold")
    window = f"decisions from {rfc3339(report.from_us)[:16]}Z to {rfc3339(report.to_us)[:16]}Z"
    parts = {most for _, most in report.shards}
    if parts != {1} and len(report.shards) < max(parts):
        window += f", part {', '.join(f'{part}/{most}' for part, most in report.shards)} of them"
    console.print(f"{window}: {report.replayed:,} replayed, {report.same:,} come out as they were", style=QUIET)
    if report.other_revisions:
        console.print(
            f"{report.other_revisions:,} were made under other revisions than those in use: what was changed since "
            "flips them too",
            style=CAREFUL,
        )
    for reason, count in sorted(report.not_replayed.items()):
        console.print(f"{words.plural(count, 'decision')} cannot be replayed: {NOT_REPLAYED[reason]}", style=CAREFUL)
    if report.errors:
        console.print(f"{words.plural(report.errors, 'request')} had brought no decision, then as now", style=QUIET)
    console.print()


def _changes(report: ImpactReport, console: Console) -> None:
    columns = (Column("change"), Column("decisions", right=True), Column("share", right=True))
    rows = [
        (CHANGE_WORDS[name], f"{count:,}", share(-(-count * PPM // report.replayed)))
        for name, count in report.changes.items()
        if count or name in FLIPS
    ]
    rows.append(("flips (the first three)", f"{report.flips:,}", share(report.flips_ppm)))
    draw_rows(console, columns, rows)
    if report.failed:
        console.print(
            f"{words.plural(report.failed, 'decision')} of allow → deny for want of a verdict: see the rules below",
            style=BAD,
        )
    before, after = report.cost_before_micro_usd, report.cost_after_micro_usd
    console.print(f"cost of first choices {words.usd(before)} → {words.usd(after)} ({_percent(before, after)})")
    console.print()


def _table(dimension: str, title: str, report: ImpactReport, console: Console) -> None:
    found = [(value, row) for value, row in sorted_rows(report.rows[dimension]) if row.flips or row.hard]
    if not found:
        return
    whole = dimension in ("tenant", "model")
    columns = (
        Column(dimension),
        *((Column("decisions", right=True),) if whole else ()),
        Column("allow→deny", right=True),
        Column("deny→allow", right=True),
        Column("first choice", right=True),
        Column("hard lifted", right=True),
        Column("cost", right=True),
    )
    console.print(title, style="bold")
    draw_rows(console, columns, [_row(value, row, whole) for value, row in found[:ROWS_SHOWN_MAX]])
    if len(found) > ROWS_SHOWN_MAX:
        console.print(f"and {len(found) - ROWS_SHOWN_MAX:,} more: see --output json", style=QUIET)
    console.print()


def _row(value: str, row: Row, whole: bool) -> tuple[str, ...]:
    counts = (row.allow_to_deny, row.deny_to_allow, row.first_choice, row.hard)
    return (
        value,
        *((f"{row.decisions:,}",) if whole else ()),
        *(f"{count:,}" if count else "-" for count in counts),
        _percent(row.cost_before_micro_usd, row.cost_after_micro_usd),
    )


def _percent(before: int, after: int) -> str:
    if before == 0:
        return "-"
    percent_x10 = (2_000 * (after - before) + before) // (2 * before)
    if percent_x10 == 0:
        return "same" if after == before else "±0 %"
    return f"{'+' if percent_x10 > 0 else '-'}{abs(percent_x10) // 10}.{abs(percent_x10) % 10} %"


def _examples(report: ImpactReport, console: Console) -> None:
    found = sorted(
        (each for each in report.examples if each.change in FLIPS or each.lifted),
        key=lambda each: (not each.lifted, FLIPS.index(each.change) if each.change in FLIPS else len(FLIPS)),
    )
    if not found:
        return
    columns = (
        Column("decision"),
        Column("tenant"),
        Column("model", leaves=2),
        Column("first choice", leaves=2, starts=True),
        Column("why", leaves=1, starts=True),
    )
    console.print("Decisions to open with `policyd explain ID`", style="bold")
    draw_rows(console, columns, [_example(each) for each in found[:EXAMPLES_SHOWN_MAX]])
    console.print()


def _example(example: Example) -> tuple[str, ...]:
    lifted = f"; a hard rule had refused {', '.join(example.lifted)}" if example.lifted else ""
    why = f"{', '.join(example.rules) or 'by its score'}{lifted}"
    moved = example.before if example.before == example.after else f"{example.before} → {example.after}"
    return (example.id, example.tenant, example.model, moved, why)


def _verdict(report: ImpactReport, gate: GateResult | None, console: Console) -> None:
    if gate is not None and not gate.passed:
        console.print(f"Not passed: {gate.said}", style=BAD)
    elif gate is not None and report.needs_approval:
        console.print(f"Passed with an approval only: {gate.said}", style=BAD)
    elif gate is not None:
        console.print(f"Passed: {gate.said}", style=GOOD)
    elif not report.replayed:
        console.print("No decision was replayed: nothing is known of this candidate's effect.", style=CAREFUL)
    elif report.needs_approval:
        console.print(
            f"{words.plural(report.hard, 'decision')} would be placed where a hard rule refused: "
            "that needs an approval, whatever the share.",
            style=BAD,
        )
    elif report.flips:
        console.print(
            f"{words.plural(report.flips, 'decision')} would flip ({share(report.flips_ppm)}).", style=CAREFUL
        )
    else:
        console.print("No decision would flip.", style=GOOD)
