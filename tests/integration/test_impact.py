"""Logged decisions of a real trace, replayed: on the same revisions they come out as they were, on others they flip."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from bench.replay_trace import EXCERPT, requests
from policyd.bootstrap import LOCAL, make_engine, make_entitlements, running, shipped
from policyd.cli.impact_parts import Parts, Question, planned
from policyd.cli.main import run
from policyd.cli.named_revisions import Kind, named_revision
from policyd.errors import EngineUnavailable, PolicydError
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.activation import Candidates
from policyd.services.clock import now_us
from policyd.services.impact import Candidate, ImpactLimits, ImpactReport, impact_entry, impact_gate, merged
from policyd.services.impact_run import ImpactRun, Progress, impact
from policyd.services.impact_verdicts import Verdicts
from policyd.services.log_place import directory_of
from policyd.services.log_reader import LogReader
from policyd.settings import Settings, load_settings

DECISIONS = 120
ALL = 2_000


def decided(folder: Path, count: int) -> Settings:
    """A log with decisions of the trace, one with another model that does not exist, and one without budget."""
    settings = load_settings(flags={"data_dir": str(folder / "data"), "engine": {"deadline_ms": 10_000}})

    async def main() -> None:
        async with running(settings) as up:
            asked = itertools.islice(requests(EXCERPT), count)

            async def caller() -> None:
                for _, request in asked:
                    await up.decisions.decide(request, LOCAL, "trace")

            await asyncio.gather(*(caller() for _ in range(32)))
            _, first = requests(EXCERPT)[0]
            unknown = first.model_copy(update={"workload": first.workload.model_copy(update={"model": "no-such"})})
            with pytest.raises(PolicydError):
                await up.decisions.decide(unknown, LOCAL, "trace")

    asyncio.run(main())
    return settings


class Replays:
    """Replays a log on candidates, each of which is built once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._runner = asyncio.Runner()
        self._engine = make_engine(settings.engine)
        self._reader = self._runner.run(LogReader.open(directory_of(settings)))
        self._known: dict[tuple[str, str, int], Verdicts] = {}

    def close(self) -> None:
        """Give everything back."""
        self._runner.run(self._reader.close())
        self._runner.run(self._engine.close())
        self._runner.close()

    def __call__(
        self,
        policies: Path = shipped("policies"),  # noqa: B008 - a path
        fleet: Path = shipped("fleet"),  # noqa: B008 - a path
        *,
        window: tuple[int, int] | None = None,
        shard: tuple[int, int] = (1, 1),
        deadline_ms: int = 10_000,
        work: Callable[[LogReader, Verdicts, ImpactReport], Any] | None = None,
    ) -> ImpactReport:
        """The report of one window of the log."""

        async def main() -> ImpactReport:
            tree, candidate = load_policy_tree(policies), load_fleet(fleet)
            verdicts = self._known.get((tree.digest, candidate.digest, deadline_ms))
            if verdicts is None:
                snapshot = await Candidates(self._engine, make_entitlements).proved(tree, candidate)
                verdicts = Verdicts(self._engine, snapshot, deadline_ms)
                self._known[tree.digest, candidate.digest, deadline_ms] = verdicts
            report = ImpactReport(Candidate(tree.digest, candidate.digest), *(window or (0, now_us())), (shard,))
            if work is not None:
                found: ImpactReport = await work(self._reader, verdicts, report)
                return found
            return await impact(self._reader, verdicts, report, shard=shard)

        return self._runner.run(main())


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Generator[Replays, None, None]:
    """Replays of a log with some decisions of the trace."""
    replays = Replays(decided(tmp_path_factory.mktemp("impact"), DECISIONS))
    yield replays
    replays.close()


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the policies and the fleet, to change."""
    for name in ("policies", "fleet"):
        shutil.copytree(shipped(name), tmp_path / name)
    return tmp_path / "policies", tmp_path / "fleet"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fleet with pools that are in another country."""
    folder = tmp_path_factory.mktemp("moved") / "fleet"
    shutil.copytree(shipped("fleet"), folder)
    edited(folder / "pools-own.yaml", "processing: [DE]", "processing: [US]")
    return folder


def rows(report: ImpactReport, dimension: str) -> dict[str, int]:
    return {value: row.flips for value, row in report.rows[dimension].items() if row.flips}


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_same_revisions_reproduce_every_outcome_and_order(replayed: Replays) -> None:
    report = replayed()
    assert (report.replayed, report.same, report.lost, report.errors) == (DECISIONS, DECISIONS, 0, 1)
    assert report.cost_before_micro_usd == report.cost_after_micro_usd > 0
    assert impact_gate(report, ImpactLimits(0, 0)).passed


@pytest.mark.long
def test_the_whole_trace_is_reproduced(tmp_path: Path) -> None:
    replays = Replays(decided(tmp_path, ALL))
    report = replays()
    replays.close()
    assert (report.replayed, report.same, report.lost) == (ALL, ALL, 0)


def test_parts_add_up_to_the_whole(replayed: Replays, moved: Path) -> None:
    window = (0, now_us())
    whole = replayed(fleet=moved, window=window)
    parts = [replayed(fleet=moved, window=window, shard=(part, 2)) for part in (1, 2)]
    assert whole.flips > 0
    assert all(part.replayed for part in parts)
    together = merged(parts)
    for name in ("replayed", "changes", "hard", "errors", "rows", "cost_before_micro_usd", "cost_after_micro_usd"):
        assert getattr(together, name) == getattr(whole, name), name


def test_a_run_that_was_stopped_goes_on_where_it_was(
    replayed: Replays, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.scan.page.__defaults__", (32,))
    window = (0, now_us())
    whole = replayed(fleet=moved, window=window)

    async def twice(reader: LogReader, verdicts: Verdicts, report: ImpactReport) -> ImpactReport:
        from audit import scan

        ranges = await reader.read(lambda connection: scan.ranges(connection, *window))
        pages: list[int] = []
        first = ImpactRun(reader, verdicts, report, Progress.of(ranges))
        await first.run(told=lambda run: pages.append(run.report.replayed), stop=lambda: len(pages) == 2)
        assert not first.report.complete
        assert 0 < first.progress.done < first.progress.total
        assert not impact_gate(first.report, ImpactLimits(1_000_000)).passed
        # As on another machine: from what was written down.
        again = ImpactReport.from_json(first.report.to_json())
        left = Progress(list(first.progress.left), first.progress.total)
        return await ImpactRun(reader, verdicts, again, left).run()

    resumed = replayed(fleet=moved, window=window, work=twice)
    assert resumed == whole


def test_a_moved_pool_is_told_by_tenant_pool_rule_and_country(replayed: Replays, moved: Path) -> None:
    report = replayed(fleet=moved)
    assert report.flips == sum(rows(report, "tenant").values()) == sum(rows(report, "model").values()) > 0
    assert "residency.location_not_permitted" in rows(report, "rule")
    assert "DE" in rows(report, "country")
    example = next(each for each in report.examples if "residency.location_not_permitted" in each.rules)
    assert example.before != example.after
    assert not report.needs_approval


def test_what_a_hard_rule_refused_needs_a_person(replayed: Replays, trees: tuple[Path, Path]) -> None:
    policies, _ = trees
    edited(
        policies / "residency" / "residency.rego", "count(foreign) > 0\n\toutside", "count(foreign) > 999\n\toutside"
    )
    report = replayed(policies)
    assert report.hard > 0
    said = impact_gate(report, ImpactLimits(1_000_000))
    assert said.passed
    assert said.details["needs_approval"] is True
    example = next(each for each in report.examples if each.lifted)
    assert "residency.location_not_permitted" in example.rules


def test_a_fleet_without_a_pool_and_a_model_that_decisions_name(replayed: Replays, trees: tuple[Path, Path]) -> None:
    _, fleet = trees
    before = replayed()
    [model] = [name for name in before.rows["model"] if name.startswith("qwen3")]
    for path in fleet.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f": {model}", f": other-{model}").replace("onprem-fra-h100", "fra-2"), "utf-8")
    report = replayed(fleet=fleet)
    gone = before.rows["model"][model].decisions
    assert rows(report, "rule")["request.request.unknown_name"] == gone
    assert report.failed == report.changes["allow_to_deny"] == gone
    assert report.rows["rule"]["fleet.pool_gone"].first_choice > 0


def test_a_candidate_without_a_verdict_in_time_denies(replayed: Replays, trees: tuple[Path, Path]) -> None:
    policies, _ = trees
    slow = "count([1 | some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a * b == 7]) > 999999"
    edited(policies / "residency" / "residency.rego", "count(foreign) > 0\n", f"{slow}\n")
    report = replayed(policies, deadline_ms=150)
    assert report.changes["allow_to_deny"] == report.failed == report.replayed
    assert rows(report, "rule")["residency.evaluation_failed"] == report.replayed
    assert not impact_gate(report, ImpactLimits()).passed


def test_an_empty_window_flips_nothing_and_says_so(replayed: Replays) -> None:
    report = replayed(window=(1, 2))
    assert (report.replayed, report.complete) == (0, True)
    assert "no decision was logged" in impact_gate(report, ImpactLimits()).said


def test_an_engine_that_is_gone_is_no_report(replayed: Replays) -> None:
    closed = make_engine(replayed.settings.engine)

    async def gone(reader: LogReader, verdicts: Verdicts, report: ImpactReport) -> ImpactReport:
        await closed.close()
        return await impact(reader, Verdicts(closed, verdicts.snapshot), report)

    with pytest.raises(EngineUnavailable):
        replayed(work=gone)


def test_the_command_counts_in_processes_and_joins_parts(
    replayed: Replays, moved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    window = ("--since", "2020-01-01T00:00:00Z", "--until", "2099-01-01T00:00:00Z")
    asked = ("policy", "impact", str(moved), "--kind", "fleet", "--data-dir", str(replayed.settings.data_dir), *window)
    assert run([*asked, "--shard", "1/2", "-o", "json"]) == 0
    first = json.loads(capfd.readouterr().out)
    other = replayed(fleet=moved, window=(first["from_us"], first["to_us"]), shard=(2, 2)).to_json()
    for part, report in ((1, first), (2, other)):
        (tmp_path / f"{part}.json").write_text(json.dumps(report), encoding="utf-8")
    files = [str(tmp_path / f"{part}.json") for part in (1, 2)]
    assert run(["policy", "impact", "merge", *files, "--max-flips", "1%", "-o", "json"]) == 3
    together = json.loads(capfd.readouterr().out)
    assert together["gate"]["passed"] is False
    whole = replayed(fleet=moved)
    assert (together["replayed"], together["flips"]) == (whole.replayed, whole.flips)
    assert run(["policy", "impact", "merge", *files]) == 0
    shown = capfd.readouterr().out
    assert "residency.location_not_permitted" in shown
    assert f"{whole.flips} decisions would flip" in shown
    for bad, code, word in (
        (files[:1], 2, "2/2 is missing"),
        ([files[0], files[0]], 2, "twice"),
        ([str(moved / "models.yaml")], 2, "no JSON"),
        ([str(tmp_path / "absent")], 2, "cannot be read"),
        ([], 2, "name the reports"),
    ):
        assert run(["policy", "impact", "merge", *bad]) == code
        assert word in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["no-such-branch"], 1, "no file or folder"),
        (["sha256:" + "0" * 64], 1, "no policy revision"),
        (["examples/workloads"], 1, "casbin"),
        (["--shard", "1/2"], 2, "the same window"),
        (["--shard", "3/2"], 2, "no part"),
        (["--max-flips", "200%"], 2, "no percentage"),
        (["--since", "yesterday"], 2, "neither a time"),
        (["--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"], 2, "ends before"),
        (["one", "two"], 2, "name one revision"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    replayed: Replays, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, word: str
) -> None:
    assert run(["policy", "impact", *arguments, "--data-dir", str(replayed.settings.data_dir)]) == code
    assert word in capfd.readouterr().err.replace("\n", " ")


@pytest.mark.long
def test_an_interrupted_command_goes_on_with_its_own_window(replayed: Replays, moved: Path) -> None:
    named = ((Kind.POLICY, None), (Kind.FLEET, str(moved)))

    def question(until: str | None) -> Question:
        revisions = [named_revision(replayed.settings, kind, name) for kind, name in named]
        return Question(revisions[0], revisions[1], ("a", "b"), "7d", until, (0, now_us()), (1, 1), "moved")

    async def parts(until: str | None = None, *, anew: bool = False, stop: bool = False) -> tuple[Parts, ImpactReport]:
        reader = await LogReader.open(directory_of(replayed.settings))
        made = await planned(replayed.settings, reader, question(until), 2, anew=anew)
        await reader.close()
        made.interrupted = stop
        return made, await made.run(replayed.settings)

    first, stopped = asyncio.run(parts(stop=True))
    assert (stopped.complete, stopped.replayed) == (False, 0)
    assert first.path.exists()
    second, done = asyncio.run(parts())
    assert second.resumed
    assert second.window == first.window
    assert (done.complete, done.replayed) == (True, DECISIONS)
    second.forget()
    assert not first.path.exists()


def test_a_stored_report_is_an_entry_of_its_revision(replayed: Replays, tmp_path: Path) -> None:
    report = replayed(window=(1, 2))
    entry, blob = impact_entry(report, "policy", now_us())
    assert (entry.kind, blob.kind) == ("revision", "revision")
    body = json.loads(entry.body)
    assert (body["action"], body["report"]) == ("impact", blob.digest)
    assert ImpactReport.from_json(json.loads(blob.content)["impact"]) == report
