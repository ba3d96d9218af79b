"""The HTTP server: a socket of our own, uvicorn on it, and an end that loses nothing.

    listening ──SIGTERM, SIGINT or stop──► draining ──all answered, or too late──► closed
        └─ SIGHUP: policies and fleet are read again, and go live together or not at all

Rules: the address is announced only when requests are answered, and taken back before anything closes; while draining
``/readyz`` says so, what is in progress is finished, nothing new is taken. It prints nothing: the caller is told.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn

from policyd.api.app import create_app
from policyd.api.connection import GuardedConnection
from policyd.api.parts import Parts
from policyd.api.tls import TlsFiles
from policyd.errors import ConfigError
from policyd.settings import Settings

BACKLOG: Final = 1_024
KEEP_ALIVE_S: Final = 30
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Objects made, and rounds, before the collector of cycles looks through the young, the middle and the old ones."""
SWITCH_S: Final = 0.001
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals to ``serve``: its own way ends the process at once."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell_started()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    running: Parts,
    settings: Settings,
    ready: Callable[[str], None],
    stop: asyncio.Event | None = None,
    shared: socket.socket | None = None,
) -> None:
    """Serve until a signal comes or ``stop`` is set. ``ready`` is called once, with the address (``http://host:port``).

    With a ``shared`` socket, which listens already, the address is another process's to announce.
    Raises ``ConfigError`` when the address cannot be bound, and ``AuditError`` when it cannot be announced.
    """
    tls = TlsFiles(settings.tls) if settings.tls.certificate_file is not None else None
    listener = shared or listen(settings.host, settings.port)
    with listener:
        address = address_of(listener, secure=tls is not None)
        app = create_app(running)
        config = uvicorn.Config(
            app,
            http=GuardedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.api.request_timeout_ms // 1_000 + 1,
            backlog=BACKLOG,
            ssl_context_factory=(lambda config, default: tls.context) if tls is not None else None,
        )

        def started() -> None:
            if shared is None:
                running.directory.announce(address)
            ready(address)

        server = _Server(config, started)

        def end() -> None:
            app.state.readiness.draining = True
            server.should_exit = True

        watching = [asyncio.create_task(_watch(stop, end))] if stop is not None else []
        if tls is not None:
            watching.append(asyncio.create_task(_keep_fresh(tls, settings.auth.refresh_ms)))
        with _signals(end, running.reload.ask), at_work():
            try:
                await server.serve([listener])
            finally:
                for task in watching:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task


async def _watch(stop: asyncio.Event, end: Callable[[], None]) -> None:
    await stop.wait()
    end()


async def _keep_fresh(tls: TlsFiles, refresh_ms: int) -> None:
    while True:
        await asyncio.sleep(refresh_ms / 1_000)
        await asyncio.to_thread(tls.refresh)


@contextmanager
def _signals(end: Callable[[], None], reload: Callable[[], object]) -> Generator[None, None, None]:
    """End or reload on a signal; outside the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (*_SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)


@contextmanager
def at_work() -> Generator[None, None, None]:
    """Tell the interpreter that what was loaded stays, and that two threads share each decision.

    Decisions leave no cycles behind, so looking through everything that is loaded for some finds none, again and again;
    and the loop waits for the writer of the log at most ``SWITCH_S`` each time that both have work.
    """
    thresholds, switch_s = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that is bound, not yet listening. Port 0 takes a free one. Raises ``ConfigError``.

    Of several ``shared`` ones on a port, each gets its part of the connections.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host}:{port} is no address to listen on: {error.strerror}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.setblocking(False)
        found.bind(where)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror}", remedy="choose another --port; 0 takes a free one"
        ) from error
    return found


def address_of(listener: socket.socket, *, secure: bool = False) -> str:
    """``http://host:port`` of a bound socket, or ``https``."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop when it is installed, for ``asyncio.Runner``; None is the standard one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
