"""The child process that runs the embedded engine: compiles policy trees and answers questions, one line each way.

Started as a script with ``python -I``, with an empty environment; it imports nothing of policyd, so it starts fast and
stays small. Requests come on stdin, one JSON object a line; answers leave on the descriptor that stdout was at the
start. Before the engine is loaded, stdout is turned into stderr, because the engine's C++ code prints there.

Rules: answers leave in order and within milliseconds, so that the parent knows which question runs, and nearly which
one ran when this process dies; nothing is decided here: the parent judges every answer. It refuses to outlive its
parent or its memory limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_MEMORY_CHECK_S = 0.02
_GATHER_S = 0.003


def _confine() -> BinaryIO:
    """Die with the parent, leave no core file, and keep the answer channel to ourselves."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def _watch_memory(limit_bytes: int) -> None:
    """Kill this process when it grows beyond its limit. The engine runs outside the interpreter lock, so this runs.

    RLIMIT_AS is of no use: the engine's allocator reserves hundreds of gigabytes of address space at its start. Nor is
    ru_maxrss on Linux: a new process starts with that of its parent, and a large server would have no workers.
    """
    while _resident_bytes() < limit_bytes:
        time.sleep(_MEMORY_CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Answers:
    """The channel to the parent. Answers gather for a few milliseconds, so that the parent wakes once for many.

    A thread of its own sends them, also while the engine runs: the parent so always knows which question is running.
    """

    def __init__(self, channel: BinaryIO) -> None:
        self._channel = channel
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._some = threading.Event()
        threading.Thread(target=self._send_late, daemon=True).start()

    def gather(self, message: dict[str, Any]) -> None:
        """Send within ``_GATHER_S``."""
        with self._lock:
            self._waiting.append(_line(message))
        self._some.set()

    def say(self, message: dict[str, Any]) -> None:
        """Send now, after what was gathered."""
        with self._lock:
            self._waiting.append(_line(message))
        self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._some.clear()
            if waiting:
                self._channel.write(b"".join(waiting))

    def _send_late(self) -> None:
        while self._some.wait():
            time.sleep(_GATHER_S)
            self.flush()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Engine:
    """The loaded bundles of this process, by digest, each with an interpreter of its own."""

    def __init__(self) -> None:
        import regopy
        from regopy import rego_shared

        self._regopy = regopy
        self._shared = rego_shared
        self._push = _pusher(rego_shared.rego)
        self._loaded: dict[str, tuple[Any, Any]] = {}

    @property
    def version(self) -> str:
        return str(self._regopy.__version__)

    def _interpreter(self) -> Any:
        interpreter = self._regopy.Interpreter()
        interpreter.strict_built_in_errors = True
        return interpreter

    def load(self, digest: str, path: str) -> None:
        interpreter = self._interpreter()
        bundle = interpreter.load_bundle(path, self._regopy.BundleFormat.Binary)
        if not bundle.ok():
            raise RuntimeError(f"the bundle of {digest} does not load")
        self._loaded[digest] = (interpreter, bundle)

    def unload(self, digest: str) -> None:
        self._loaded.pop(digest, None)

    def compile(self, request: dict[str, Any], say: Any) -> dict[str, Any]:
        interpreter = self._interpreter()
        faults = []
        for path, text in request["modules"]:
            say({"reading": path})
            try:
                interpreter.add_module(path, text)
            except self._shared.RegoError as fault:
                faults.append([path, str(fault)])
                # A failed module leaves the interpreter unusable: the rest is only read for more faults.
                interpreter = self._interpreter()
        if faults or not request["entrypoints"]:
            return {"faults": faults}
        say({"reading": ""})
        try:
            interpreter.add_data_json(request["data"])
            bundle = interpreter.build(None, request["entrypoints"])
            interpreter.save_bundle(request["plan_directory"], bundle)
            interpreter.save_bundle(request["bundle"], bundle, self._regopy.BundleFormat.Binary)
        except self._shared.RegoError as fault:
            return {"faults": [["", str(fault)]]}
        return {"faults": []}

    def ask(self, digest: str, entrypoints: dict[str, str], question: str) -> dict[str, Any]:
        interpreter, bundle = self._loaded[digest]
        self._set_input(interpreter, json.loads(question))
        exports: dict[str, Any] = {}
        for export, entrypoint in entrypoints.items():
            output = self._shared.rego_bundle_query_entrypoint(interpreter._impl, bundle._impl, entrypoint)
            try:
                text = self._shared.rego_output_string(output)
                if not self._shared.rego_output_ok(output) or text.startswith("(error"):
                    return {"error": f"{export}: {self._fault(output, text)}"}
                if text != "undefined":
                    exports[export] = json.loads(text)["expressions"][0]
            except ValueError:
                return {"error": f"{export}: the engine printed no JSON"}
            finally:
                self._shared.rego_free_output(output)
        return {"exports": exports}

    def _set_input(self, interpreter: Any, document: Any) -> None:
        """What ``Interpreter.set_input`` does, in a quarter of its time: no buffer and no type test is made twice."""
        holder = ctypes.c_void_p(self._shared.rego_new_input())
        try:
            if self._push(holder, document) or self._shared.rego.regoSetInput(interpreter._impl, holder):
                raise RuntimeError("the engine takes no input")
        finally:
            self._shared.rego_free_input(holder)

    def _fault(self, output: Any, text: str) -> str:
        """The engine's own words: from the error tree of a failed query, or from its printed form."""
        marker = "errormsg "
        if marker in text:
            return text.split(marker, 1)[1].split(":", 1)[-1].split(")", 1)[0][:300]
        found: list[str] = []
        with contextlib.suppress(self._shared.RegoError, ValueError, TypeError):
            self._collect(self._shared.rego_output_node(output), found, 0)
        return "; ".join(found)[:300] or "the evaluation failed"

    def _collect(self, node: Any, found: list[str], depth: int) -> None:
        if depth > 6 or len(found) >= 3:
            return
        if self._shared.rego_node_type(node) == self._shared.NodeKind.ErrorMessage:
            found.append(self._shared.rego_node_value(node))
            return
        for index in range(self._shared.rego_node_size(node)):
            self._collect(self._shared.rego_node_get(node, index), found, depth + 1)


def _pusher(library: Any) -> Callable[[Any, Any], int]:
    """A function that puts a JSON value on the engine's stack; it gives 0 unless the engine refuses one of the parts.

    A question has some hundred parts, so the engine's functions are looked up once.
    """
    text, integer, boolean = library.regoInputString, library.regoInputInt, library.regoInputBoolean
    null, item, make_object, make_array = (
        library.regoInputNull,
        library.regoInputObjectItem,
        library.regoInputObject,
        library.regoInputArray,
    )

    def push(holder: Any, value: Any) -> int:
        kind = type(value)
        code: int = 0
        if kind is str:
            return text(holder, value.encode())  # type: ignore[no-any-return]  # ctypes knows no types
        if kind is dict:
            for key, part in value.items():
                code |= text(holder, key.encode())
                code |= text(holder, part.encode()) if type(part) is str else push(holder, part)
                code |= item(holder)
            return code | make_object(holder, len(value))  # type: ignore[no-any-return]
        if kind is list:
            for part in value:
                code |= text(holder, part.encode()) if type(part) is str else push(holder, part)
            return code | make_array(holder, len(value))  # type: ignore[no-any-return]
        if kind is bool:
            return boolean(holder, value)  # type: ignore[no-any-return]
        if kind is int:
            return integer(holder, value)  # type: ignore[no-any-return]
        return null(holder) if value is None else 1

    return push


def _serve(channel: BinaryIO, memory_bytes: int) -> None:
    answers = _Answers(channel)
    engine = _Engine()
    threading.Thread(target=_watch_memory, args=(memory_bytes,), daemon=True).start()
    answers.say({"ready": engine.version})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        match request["do"]:
            case "ask":
                for package_entrypoints, question in request["questions"]:
                    answers.gather(engine.ask(request["digest"], package_entrypoints, question))
                answers.flush()
            case "load":
                engine.load(request["digest"], request["bundle"])
                answers.say({"loaded": request["digest"]})
            case "unload":
                engine.unload(request["digest"])
                answers.say({"unloaded": request["digest"]})
            case "compile":
                answers.say(engine.compile(request, answers.say))


if __name__ == "__main__":
    _serve(_confine(), int(sys.argv[1]))
