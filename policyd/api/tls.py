"""TLS from files, and other files without a restart.

Rules: TLS 1.2 or newer; new files are read aside and checked (key and certificate fit) before they serve, and files
that do not hold together leave the last good ones serving, and say so; connections that stand keep what they had.
"""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from policyd.errors import ConfigError
from policyd.identity_settings import TlsSettings

_log: Final = logging.getLogger(__name__)


class _Context(ssl.SSLContext):
    """A context that knows since when it serves, in seconds since 1970."""

    since_s: float


@dataclass
class TlsFiles:
    """The TLS of a server. ``context`` stays the same object; what it shows to a new connection changes."""

    settings: TlsSettings
    context: ssl.SSLContext = field(init=False)
    _current: _Context = field(init=False)
    _stamps: tuple[tuple[int, int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        self._stamps = self._found()
        self.context = self._current = self._built()

        def swap(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._current

        # Called for each new connection once its greeting is there, with or without a name in it.
        self.context.sni_callback = swap

    def refresh(self) -> bool:
        """Take other files when they have changed; whether they have. Never raises: the last good ones serve on."""
        try:
            stamps = self._found()
            if stamps == self._stamps:
                return False
            self._stamps = stamps
            self._current = self._built()
        except ConfigError as error:
            _log.error("the new TLS files are not taken: %s", error.detail)
            return False
        return True

    def _files(self) -> list[Path]:
        files = (self.settings.certificate_file, self.settings.key_file, self.settings.client_ca_file)
        return [file for file in files if file is not None]

    def _found(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for file in self._files():
            try:
                status = file.stat()
            except OSError as error:
                raise ConfigError(f"the TLS file {file} cannot be read: {error.strerror}") from None
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _built(self) -> _Context:
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.since_s = time.time()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        assert self.settings.certificate_file is not None
        try:
            context.load_cert_chain(self.settings.certificate_file, self.settings.key_file, password=_no_password)
            if self.settings.client_ca_file is not None:
                context.load_verify_locations(self.settings.client_ca_file)
                required = self.settings.client_certificate == "required"
                context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
                # A ticket of TLS 1.3 would carry the certificate past a change of the authorities, renewed each time.
                context.num_tickets = 0
        except (OSError, ValueError) as error:
            raise ConfigError(f"the TLS files do not hold together: {error}") from None
        return context


def _no_password() -> str:
    """Called for an encrypted key; without it OpenSSL asks on the terminal and waits."""
    raise ValueError("the private key is encrypted; give one that is not, readable by this user only")


def certificate_names(connection: Any) -> tuple[str, ...] | None:
    """The DNS names and URIs of the certificate that the other side showed and TLS verified; None when it has none."""
    certificate = connection.getpeercert() if connection is not None else None
    if not certificate:
        return None
    if connection.session_reused and connection.session.time < connection.context.since_s:
        # TLS 1.2, resumed: verified by the authorities of before. It names nobody until a whole handshake is made.
        return ()
    return tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI"))
