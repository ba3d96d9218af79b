"""The entries of a server's log, for a copy of it: page after page, as ``GET /v1/log/entries`` gives them.

Rules: one page is held at a time; a page of another log, or that is not what was asked for, ends the copy.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.entries import Stored
    from audit.entry_lines import EntryPage
    from policyd.client import Client


class ServerEntries:
    """A log that a server shows. Made by ``open``, which asks for the first page."""

    def __init__(self, client: Client, address: str, log: str | None, first: EntryPage) -> None:
        self._client = client
        self._address = address
        self._log = log
        self._page = first
        self._size = first.size
        self.origin = first.origin

    @classmethod
    async def open(cls, client: Client, address: str, log: str | None, start: int) -> ServerEntries:
        """The log of a server that has this name (its own, without one), read from an index on."""
        return cls(client, address, log, await asyncio.to_thread(_page, client, address, log, start))

    async def size(self) -> int:
        """How many entries it had when it was opened."""
        return self._size

    async def entries(self, from_index: int, to_index: int) -> list[Stored]:
        """The entries from an index on, before another; those whose body retention has removed are left out."""
        found: list[Stored] = []
        at = from_index
        while at < to_index:
            if not self._page.start <= at < self._page.end:
                self._page = await asyncio.to_thread(self._next, at)
            found += [entry for entry in self._page.entries if at <= entry.index < to_index]
            at = min(self._page.end, to_index)
        return found

    def _next(self, start: int) -> EntryPage:
        from policyd.errors import ProofRefused

        page = _page(self._client, self._address, self._log, start)
        if page.origin != self.origin or page.end == start:
            # A page without entries says that the log ends here, and it had more of them when the copy began.
            raise ProofRefused(f"{self._address} no longer shows the log {self.origin} with {self._size} entries")
        return page


def _page(client: Client, address: str, log: str | None, start: int) -> EntryPage:
    from audit.entry_lines import read_page
    from audit.errors import ProofInvalid
    from policyd.client import history
    from policyd.errors import ProofRefused

    content = client.send(history.entries_page(start, log))
    try:
        return read_page(content, start)
    except ProofInvalid as error:
        raise ProofRefused(
            f"{address}: {error}", remedy="ask the server that holds the log, without a go-between"
        ) from error
