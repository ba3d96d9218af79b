"""The OPA engine: real OPA servers, one policy set each, asked by ``opa-python-client``.

Either policyd starts and supervises a child for every policy set, or it is given addresses of servers that it has to
itself; each address holds one policy set, so a swap without a gap needs two.

Rules: compilation and read sets are those of ``policyd.engines.compilation``; OPA then checks the same text itself. A
batch is one round trip. Every reply names the digest that it was computed with; another digest, or none, is
``EngineUnavailable`` and never an answer. A batch that fails is divided until the guilty questions are alone: those are
errors, the others get their answers. After a deadline a child that still computes is killed. A package that failed by
deadline twice in a batch is not tried again in it.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from policyd.core.verdict import Answer, PolicySet, Question
from policyd.engines.answers import answer_from, question_fault
from policyd.engines.compilation import Compiled, compile_tree
from policyd.engines.compiler import SETTINGS
from policyd.engines.embedded_tests import cases_of
from policyd.engines.opa_client import Address, EvaluationFailed, OpaConnection
from policyd.engines.opa_driver import REPLY_PATH, batch_input, driver_module
from policyd.engines.opa_process import OpaChild, check_strict, find_binary, run_opa, write_modules
from policyd.errors import EngineError, EngineTimeout, EngineUnavailable, Finding, PolicyInvalid
from policyd.ports import EngineCounts, PolicyTree, TestResult

BATCH_QUESTIONS: Final = 256
"""Questions in one round trip."""

MAX_STRIKES: Final = 2
POLICY_PREFIX: Final = "policyd/"
_DRIVER_ID: Final = POLICY_PREFIX + "driver"


class _Holder(Protocol):
    """One OPA that holds one policy set."""

    connection: OpaConnection

    async def ensure(self) -> None: ...

    async def recover(self) -> None: ...

    async def stop_if_busy(self) -> bool: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Loaded:
    """A policy set and the OPA that serves it."""

    policies: PolicySet
    holder: _Holder


@dataclass(slots=True)
class _Batch:
    """The state of one ``evaluate``."""

    loaded: _Loaded
    questions: Sequence[Question]
    deadline_s: float
    answers: list[Answer | None]
    strikes: Counter[str] = field(default_factory=Counter)


class _Remote:
    """An OPA at an address, which policyd has to itself. Its policies are put there, and put again when it is empty."""

    def __init__(self, connection: OpaConnection) -> None:
        self.connection = connection
        self._policies: dict[str, str] = {}
        self._settings: Mapping[str, Any] = {}

    async def load(self, policies: dict[str, str], settings: Mapping[str, Any]) -> list[Finding]:
        """Replace what the server holds. The driver goes first and comes last: in between, it answers for nobody."""
        held = await self.connection.policy_ids()
        foreign = sorted(name for name in held if not name.startswith(POLICY_PREFIX))
        if foreign:
            raise EngineUnavailable(f"the OPA holds policies that policyd did not load: {foreign[0]}")
        await self._delete_all(sorted(held, key=lambda name: (name != _DRIVER_ID, name)))
        await self.connection.put_data(SETTINGS, settings)
        findings = await self._put_all(policies)
        if not findings:
            self._policies, self._settings = policies, settings
        return findings

    async def _delete_all(self, names: Sequence[str]) -> None:
        """Delete modules in an order that OPA allows: a library goes after those that use it."""
        waiting = list(names)
        while waiting:
            kept: list[str] = []
            for name in waiting:
                try:
                    await self.connection.delete_policy(name)
                except EngineUnavailable:
                    kept.append(name)
            if len(kept) == len(waiting):
                raise EngineUnavailable(f"the OPA does not remove its old policies, first {kept[0]}")
            waiting = kept

    async def _put_all(self, policies: Mapping[str, str]) -> list[Finding]:
        """Put modules in an order in which each compiles: those that fail are tried again after the others."""
        waiting = dict(sorted(policies.items(), key=lambda item: item[0] == _DRIVER_ID))
        while waiting:
            refused: dict[str, list[Finding]] = {}
            for name, text in waiting.items():
                findings = await self.connection.put_policy(name, text)
                if findings:
                    refused[name] = findings
            if len(refused) == len(waiting):
                return [finding for findings in refused.values() for finding in findings]
            waiting = {name: waiting[name] for name in refused}
        return []

    async def ensure(self) -> None:
        """Nothing to do before a question."""

    async def recover(self) -> None:
        """Load again when the server has lost everything (a restart); leave it alone in every other case."""
        if self._policies and not await self.connection.policy_ids():
            await self.connection.put_data(SETTINGS, self._settings)
            await self._put_all(self._policies)

    async def stop_if_busy(self) -> bool:
        """A server of others is not killed: OPA gives up when the connection closes."""
        return False

    async def close(self) -> None:
        """Close the connection; the policies stay, and only their digest can ask them."""
        await self.connection.close()


class OpaEngine:
    """``policyd.ports.Engine`` on OPA. Belongs to one event loop. Made by ``child`` or ``at_url``."""

    def __init__(self, *, binary: str | None, connections: Sequence[OpaConnection]) -> None:
        self._binary = binary
        self._free = list(connections)
        self._loaded: dict[str, _Loaded] = {}
        self._name = "opa"
        self._closed = False
        self.counts = EngineCounts()

    @classmethod
    def child(cls, binary: str = "opa") -> OpaEngine:
        """An OPA of our own for each policy set. ``binary`` is a path or a name on PATH."""
        return cls(binary=binary, connections=())

    @classmethod
    def at_url(cls, *urls: str, token: str | None = None) -> OpaEngine:
        """OPAs that run already, one policy set each. Raises ``ConfigError`` for an unusable address."""
        return cls(binary=None, connections=[OpaConnection(Address.of_url(url), token) for url in urls])

    @property
    def name(self) -> str:
        """``opa`` and, once something is loaded into a child, its version."""
        return self._name

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The OPAs that are our own."""
        return self.child_pids

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Process ids of the children that run now."""
        holders = [loaded.holder for loaded in self._loaded.values()]
        return tuple(sorted(holder.pid for holder in holders if isinstance(holder, OpaChild) and holder.pid))

    async def load(self, tree: PolicyTree) -> PolicySet:
        """Compile, check with OPA, and serve beside what is served. Raises ``PolicyInvalid`` or ``EngineError``."""
        self._check_open()
        if tree.digest in self._loaded:
            return self._loaded[tree.digest].policies
        if self._binary is not None:
            await self._learn_version(self._binary)
        compiled = await compile_tree(tree, self.name)
        driver = driver_module(tree.digest, compiled.policies.packages)
        holder = await self._serve(compiled, driver)
        self._loaded[tree.digest] = _Loaded(compiled.policies, holder)
        try:
            await self._reply(self._loaded[tree.digest], b"{}", 10.0)
        except BaseException:
            await self.unload(tree.digest)
            raise
        return compiled.policies

    async def _serve(self, compiled: Compiled, driver: str) -> _Holder:
        modules = dict(compiled.prepared.modules)
        if self._binary is not None:
            with tempfile.TemporaryDirectory(prefix="policyd-check-") as directory:
                write_modules(Path(directory), modules, compiled.policies.settings)
                findings = await check_strict(self._binary, Path(directory))
            if findings:
                raise PolicyInvalid(f"findings in the policies: {len(findings)}", findings=findings)
            child = OpaChild(self._binary, modules, compiled.policies.settings, driver)
            try:
                await child.ensure()
            except BaseException:
                await child.close()
                raise
            return child
        if not self._free:
            raise EngineUnavailable(
                "every OPA address holds a policy set already",
                remedy="give a second address, or unload the old policies first",
            )
        remote = _Remote(self._free[0])
        policies = {POLICY_PREFIX + path: text for path, text in modules.items()} | {_DRIVER_ID: driver}
        findings = await remote.load(policies, compiled.policies.settings)
        if findings:
            shown = [Finding(finding.where.removeprefix(POLICY_PREFIX), finding.message) for finding in findings]
            raise PolicyInvalid(f"findings in the policies: {len(shown)}", findings=shown)
        self._free.pop(0)
        return remote

    async def _learn_version(self, binary: str) -> None:
        if self._name == "opa":
            _, output, _ = await run_opa(binary, "version")
            words = output.decode(errors="replace").split()
            self._name = f"opa {words[1]}" if len(words) > 1 else "opa of unknown version"

    async def evaluate(self, digest: str, questions: Sequence[Question], deadline_ms: int) -> list[Answer]:
        """Answer every question, in order. Raises ``EngineUnavailable`` for unknown digests, a gone OPA, or an OPA that
        holds other policies."""
        self._check_open()
        loaded = self._loaded.get(digest)
        if loaded is None:
            raise EngineUnavailable(f"the policies {digest} are not loaded")
        batch = _Batch(loaded, questions, deadline_ms / 1000, [None] * len(questions))
        waiting: list[int] = []
        for index, question in enumerate(questions):
            known = question.package in loaded.policies.packages
            fault = question_fault(question.input_json) if known else "there is no such package"
            if fault:
                batch.answers[index] = Answer(error=f"{question.package}: {fault}")
            else:
                waiting.append(index)
        for start in range(0, len(waiting), BATCH_QUESTIONS):
            await self._group(batch, waiting[start : start + BATCH_QUESTIONS])
        return [answer or Answer(error="the engine gave no answer") for answer in batch.answers]

    async def _group(self, batch: _Batch, group: list[int]) -> None:
        """Ask some questions at once; when that fails, divide them until the guilty ones are alone."""
        work = [group]
        while work:
            part = self._without_struck(batch, work.pop())
            if not part:
                continue
            try:
                await self._ask(batch, part)
            except EngineTimeout as fault:
                self.counts.timeouts += 1
                self.counts.killed += await batch.loaded.holder.stop_if_busy()
                if len(part) == 1:
                    batch.strikes[batch.questions[part[0]].package] += 1
                work.extend(self._divide(batch, part, fault, one_first=True))
            except EvaluationFailed as fault:
                work.extend(self._divide(batch, part, fault, one_first=False))

    def _divide(self, batch: _Batch, part: list[int], fault: EngineError, *, one_first: bool) -> list[list[int]]:
        """Smaller parts, last one asked first: by package, then one question before the rest, or halves."""
        if len(part) == 1:
            package = batch.questions[part[0]].package
            batch.answers[part[0]] = Answer(error=f"{package}: {fault.detail}")
            return []
        packages = {batch.questions[index].package for index in part}
        if len(packages) > 1:
            return [[i for i in part if batch.questions[i].package == package] for package in sorted(packages)]
        middle = 1 if one_first else len(part) // 2
        return [part[middle:], part[:middle]]

    def _without_struck(self, batch: _Batch, part: list[int]) -> list[int]:
        kept: list[int] = []
        for index in part:
            package = batch.questions[index].package
            if batch.strikes[package] < MAX_STRIKES:
                kept.append(index)
            else:
                batch.answers[index] = Answer(
                    error=f"{package}: not tried, it failed {MAX_STRIKES} times in this batch"
                )
        return kept

    async def _ask(self, batch: _Batch, part: list[int]) -> None:
        """One round trip. Raises what the connection raises; fills the answers otherwise."""
        asked = [(batch.questions[index].package, batch.questions[index].input_json) for index in part]
        answers = await self._reply(batch.loaded, batch_input(asked), batch.deadline_s)
        positions: Counter[str] = Counter()
        for index in part:
            package = batch.questions[index].package
            given = answers.get(package)
            position = positions[package]
            positions[package] += 1
            if not isinstance(given, list) or len(given) != sum(name == package for name, _ in asked):
                raise EngineUnavailable(f"OPA gave not one answer for each question to {package}")
            batch.answers[index] = _judge(batch.loaded.policies, package, given[position])

    async def _reply(self, loaded: _Loaded, body: bytes, timeout_s: float) -> Mapping[str, Any]:
        """The driver's answers, if they are of the right policies. An OPA that died or is empty is mended, once."""
        await loaded.holder.ensure()
        try:
            reply = await loaded.holder.connection.ask(REPLY_PATH, body, timeout_s)
        except EngineUnavailable:
            reply = None
        if reply is None:
            self.counts.crashed += isinstance(loaded.holder, OpaChild)
            await loaded.holder.recover()
            reply = await loaded.holder.connection.ask(REPLY_PATH, body, timeout_s)
        digest = reply.get("digest") if isinstance(reply, dict) else None
        if digest != loaded.policies.digest:
            raise EngineUnavailable(f"the OPA holds {digest or 'no policies'} and not {loaded.policies.digest}")
        answers = reply.get("answers")
        if not isinstance(answers, dict):
            raise EngineUnavailable("the OPA gave no answers")
        return answers

    async def unload(self, digest: str) -> None:
        """Forget a digest: its child ends, its address becomes free."""
        loaded = self._loaded.pop(digest, None)
        if loaded is None:
            return
        if isinstance(loaded.holder, _Remote):
            self._free.append(loaded.holder.connection)
        await loaded.holder.close()

    async def test(self, tree: PolicyTree) -> list[TestResult]:
        """Run ``opa test`` on the tree. Raises ``EngineUnavailable`` without a binary, ``PolicyInvalid`` when OPA
        cannot read the tree."""
        if self._binary is None:
            raise EngineUnavailable("tests need an OPA binary; an address alone cannot run them")
        with tempfile.TemporaryDirectory(prefix="policyd-test-") as name:
            directory = Path(name)
            texts = {str(path): text for path, text in (*tree.modules.items(), *tree.tests.items())}
            write_modules(directory, texts, {})
            (directory / "settings.json").unlink()
            for path, text in tree.data.items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_text(text, encoding="utf-8")
            status, output, complaints = await run_opa(self._binary, "test", "--format=json", name)
        return _test_results(tree, status, output, complaints)

    async def health(self) -> None:
        """Return when every loaded set answers (or a child could be started). Raises ``EngineError`` otherwise."""
        self._check_open()
        if self._binary is not None:
            find_binary(self._binary)
        for connection in self._free:
            await connection.policy_ids()
        for loaded in list(self._loaded.values()):
            await self._reply(loaded, b"{}", 2.0)

    async def close(self) -> None:
        """End every child and connection. Safe to call twice."""
        self._closed = True
        for digest in list(self._loaded):
            await self.unload(digest)
        for connection in self._free:
            await connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")


def _judge(policies: PolicySet, package: str, raw: object) -> Answer:
    """One element of the driver's list: each export an empty list or a list of one value."""
    if not isinstance(raw, dict) or not all(isinstance(values, list) and len(values) <= 1 for values in raw.values()):
        return Answer(error=f"{package}: the driver's answer has another shape")
    exports = {export: values[0] for export, values in raw.items() if values}
    answer = answer_from(exports, policies.packages[package])
    return Answer(error=f"{package}: {answer.error}") if answer.error else answer


def _test_results(tree: PolicyTree, status: int, output: bytes, complaints: bytes) -> list[TestResult]:
    """The cases of the tree with what ``opa test`` says about each; a case that it does not name has failed."""
    try:
        reported = json.loads(output)
    except ValueError:
        words = (complaints or output).decode(errors="replace").strip()
        raise PolicyInvalid("opa test cannot read the tree", findings=[Finding("", words[:1000])]) from None
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for item in reported or ():
        key = (str(item.get("package", "")).removeprefix("data."), str(item.get("name", "")))
        if not said.get(key, {}).get("fail"):
            said[key] = item
    results: list[TestResult] = []
    for case in cases_of(tree):
        item = said.get((case.package, case.rule))
        if item is None:
            results.append(case.result(False, f"opa test did not run it (status {status})"))
        else:
            failed = bool(item.get("fail") or item.get("error") or item.get("skip"))
            reason = str((item.get("error") or {}).get("message", "the test is not true")) if failed else ""
            results.append(case.result(not failed, reason))
    return results
