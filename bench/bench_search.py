"""How long a page of the audit search takes, for every filter: a common and a rare value, a first and a deep page.

    python bench/bench_search.py [--entries 1000000] [--turns 7] [--keep FILE]

Fills a log through ``audit.store.append`` with values that are spread as those of a company are: a few tenants,
projects and pools have most entries, and of every field some value is rare (one entry in twenty thousand). What goes
beyond 200,000 entries is copied from those, later in time, and indexed as an upgrade indexes an older log. Then asks
for pages of 100 through ``audit.query.search``, each filter alone and some pairs, in turns; a deep page continues a
search from the middle of the log. ``--keep`` fills that file once and asks it again the next time. Wanted: p95 of 50 ms
at 1,000,000, of 100 ms at 10,000,000.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from audit import store
from audit.query import search
from audit.record import Blob, Entry, Search, encode
from audit.tables import ENTRY
from policyd.services.clock import random_16, uuid7

BATCH = 512
MADE_MAX = 200_000
"""So many entries are made one by one, which takes most of the time; the others are copies."""
STEP_US = 86_400_000
"""An entry every 86 seconds of the pretended time: a million are three years, ten million twenty-seven."""
BEGIN_US = 1_700_000_000_000_000
SHEETS = 300
POOLS = 60
RARE_ONE_IN = 20_000
FIELDS: dict[str, int] = {
    "tenant": 20,
    "project": 60,
    "environment": 4,
    "principal": 200,
    "pool": 60,
    "provider": 12,
    "country": 15,
    "model": 25,
    "model_version": 40,
    "classification": 5,
    "sla_class": 4,
    "policy_commit": 300,
    "fleet_commit": 300,
}
"""Values of each field; the first ones are the most common."""
TERMS: dict[str, int] = {"data_source": 80, "waiver": 50, "approver": 10}
PAIRS = (
    ("tenant", "outcome"), ("tenant", "pool"), ("tenant", "classification"), ("model", "country"),
    ("outcome", "denied_by"), ("tenant", "rejected_pool"), ("classification", "model_version"),
)  # fmt: skip


def sheets() -> list[Blob]:
    """Sheets that refuse two thirds of the pools by some of fifteen rules; the last one is rarely used."""
    found = []
    for number in range(SHEETS):
        refused = [("rejected_pool", f"pool-{pool}") for pool in range(POOLS) if (pool * 7 + number) % 3]
        rules = [("rule", f"rule-{rule}") for rule in range(15) if (rule + number) % 2]
        rare = [("rejected_pool", "pool-rare"), ("rule", "rule-rare")] if number == SHEETS - 1 else []
        found.append(Blob.of("sheet", encode({"sheet": number}, bytes(16)), (*refused, *rules, *rare)))
    return found


def entries(count: int, kept: Sequence[Blob]) -> Iterator[Entry]:
    """Decisions with values by a power law, and a rare one now and then."""
    chance = random.Random(7)

    def pick(name: str, values: int) -> str:
        if chance.random() * RARE_ONE_IN < 1:
            return f"{name}-rare"
        return f"{name}-{int(values * chance.random() ** 3)}"

    for number in range(count):
        time_us = BEGIN_US + number * STEP_US
        allowed = chance.random() < 0.85
        rare = chance.random() * RARE_ONE_IN < 1
        words = {name: pick(name, values) for name, values in FIELDS.items()}
        denied_by = None if allowed else "denied-rare" if rare else ("eligibility", "capacity")[chance.random() < 0.2]
        if not allowed:
            words |= dict.fromkeys(("pool", "provider", "country"), None)  # type: ignore[arg-type]  # none was chosen
        terms = [("data_source", pick("data_source", TERMS["data_source"]))]
        if chance.random() < 0.001:
            terms += [(name, pick(name, TERMS[name])) for name in ("waiver", "approver")]
        sheet = kept[-1] if rare else kept[int((SHEETS - 1) * chance.random() ** 3)]
        entry_id = uuid7(time_us)
        found = Search(
            **words, outcome="allow" if allowed else "deny", denied_by=denied_by, sheet=sheet.digest,
            mode="shadow" if rare else "enforce", request_id=f"request-{number}",
        )  # fmt: skip
        body = {"id": entry_id, "workload": {"labels": "x" * 700}, "sheet": sheet.digest}
        yield Entry("decision", entry_id, time_us, encode(body, random_16()), found, tuple(terms))


def fill(path: Path, count: int) -> None:
    """Append, and say how fast."""
    engine = store.open_sqlite(path, "process_safe", origin="bench")
    kept = sheets()
    begun = time.perf_counter()
    with engine.connect() as connection:
        with connection.begin():
            tail = store.Tail.read(connection)
        made = entries(min(count, MADE_MAX), kept)
        blobs: Sequence[Blob] = kept
        while batch := [entry for _, entry in zip(range(BATCH), made, strict=False)]:
            with connection.begin():
                store.append(connection, batch, blobs, tail=tail)
            blobs = ()
        for start in range(MADE_MAX, count, MADE_MAX):
            copy(connection, start, min(MADE_MAX, count - start))
        indexed = time.perf_counter()
        with connection.begin():
            store.seal_full_blocks(connection)
        indexed = time.perf_counter() - indexed
    engine.dispose()
    seconds = time.perf_counter() - begun
    size = path.stat().st_size // count
    how = f"{count:,} entries in {seconds:.0f} s, the making of them included, {indexed:.0f} s the indexing of copies"
    print(f"{how}; {size:,} bytes each", file=sys.stderr)


def copy(connection: Connection, start: int, count: int) -> None:
    """The first entries once more, from an index on and later in time."""
    columns = {name: f'"{name}"' for name in ENTRY.c.keys()}  # noqa: SIM118 - it iterates over columns
    columns |= {
        "index": f'"index" + {start}',
        "id": f"""CAST(printf('%016d', "index" + {start}) AS BLOB)""",
        "time_us": f"time_us + {start * STEP_US}",
        "request_id": f"request_id || '-{start}'",
    }
    names = ", ".join(f'"{name}"' for name in columns)
    first = f'WHERE "index" < {count}'
    with connection.begin():
        for statement in (
            f"INSERT INTO entry ({names}) SELECT {', '.join(columns.values())} FROM entry {first}",
            f'INSERT INTO body SELECT "index" + {start}, body FROM body {first}',
            f'INSERT INTO entry_term SELECT field, value, "index" + {start} FROM entry_term {first}',
        ):
            connection.exec_driver_sql(statement)


def filters() -> Iterator[tuple[str, dict[str, str]]]:
    """A name, and what is asked for."""
    yield "none", {}
    common = {name: f"{name}-0" for name in (*FIELDS, *TERMS)}
    common |= {"outcome": "allow", "denied_by": "capacity", "mode": "enforce", "rejected_pool": "pool-7"}
    common |= {"rule": "rule-1"}
    rare = {name: f"{name}-rare" for name in (*FIELDS, *TERMS)}
    rare |= {"denied_by": "denied-rare", "mode": "shadow", "rejected_pool": "pool-rare", "rule": "rule-rare"}
    for name, value in common.items():
        yield f"{name}, common", {name: value}
        if name in rare:
            yield f"{name}, rare", {name: rare[name]}
    yield "request_id", {"request_id": "request-77"}
    for one, other in PAIRS:
        yield f"{one} and {other}, common", {one: common[one], other: common[other]}
        yield f"{one} common, {other} rare", {one: common[one], other: rare.get(other, common[other])}


def page_ms(connection: Connection, asked: dict[str, str], cursor: str | None) -> tuple[float, float, int]:
    """Milliseconds for one page, those of the processor, and the entries on it."""
    with connection.begin():
        begun, used = time.perf_counter(), time.thread_time()
        page = search(connection, asked, cursor)
        return (time.perf_counter() - begun) * 1_000, (time.thread_time() - used) * 1_000, len(page.items)


def middle(connection: Connection, asked: dict[str, str], count: int) -> str | None:
    """The cursor of a page that ends in the middle of the log."""
    moment = datetime.fromtimestamp((BEGIN_US + count // 2 * STEP_US) / 1_000_000, UTC).isoformat()
    with connection.begin():
        # A cursor belongs to its filters, those of time too; so the middle is a search up to that moment.
        return search(connection, {**asked, "to": moment}, limit=1).next


def p95(times_ms: list[float]) -> float:
    """Of few turns, the slowest counts."""
    return quantiles(times_ms, n=20)[-1] if len(times_ms) > 19 else max(times_ms)


def measure(path: Path, count: int, turns: int) -> Table:
    """Every filter in turns."""
    table = Table("filter", "entries", "first page ms", "p95", "deep page ms", "p95", "processor ms", "p95")
    table.title = f"{count:,} entries"
    moment = datetime.fromtimestamp((BEGIN_US + count // 2 * STEP_US) / 1_000_000, UTC).isoformat()
    asked = list(filters())
    found: dict[tuple[str, str], list[float]] = {}
    shown: dict[str, int] = {}
    engine = store.open_sqlite_reader(path)
    with engine.connect() as connection:
        deep = {name: middle(connection, each, count) for name, each in asked}
        for _ in range(turns):
            for name, each in asked:
                spent, used, shown[name] = page_ms(connection, each, None)
                found.setdefault((name, "first"), []).append(spent)
                found.setdefault((name, "processor"), []).append(used)
                if deep[name] is not None:
                    spent, used, _ = page_ms(connection, {**each, "to": moment}, deep[name])
                    found.setdefault((name, "deep"), []).append(spent)
                    found[name, "processor"].append(used)
    engine.dispose()
    slow = dict.fromkeys(("waited", "processor"), 0)
    for name, _ in asked:
        columns = [name, str(shown[name])]
        for what in ("first", "deep", "processor"):
            times = found.get((name, what))
            columns += [f"{sorted(times)[len(times) // 2]:.1f}", f"{p95(times):.1f}"] if times else ["-", "-"]
        slow["waited"] += max(p95(times) for what in ("first", "deep") if (times := found.get((name, what)))) > 50
        slow["processor"] += p95(found[name, "processor"]) > 50
        table.add_row(*columns)
    table.caption = f"{slow['waited']} of {len(asked)} above 50 ms, {slow['processor']} by processor time"
    return table


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description="Bench of the audit search.")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="a log that is filled once and asked again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = options.keep or Path(scratch) / "log.db"
        if not path.exists():
            fill(path, options.entries)
        Console(width=120).print(measure(path, options.entries, options.turns))


if __name__ == "__main__":
    main()
