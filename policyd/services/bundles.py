"""The live policies as a bundle for OPA servers, made once for each revision.

Rules: a bundle is of the policies that answer at this moment, never of a candidate; its entity tag names the revision
and the key that signs, so that it is the same from every replica, whatever is random in a signature.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from policyd.engines.opa_bundle import BundleKey, opa_bundle
from policyd.services.activation import Activation


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """An archive, and its entity tag as HTTP writes it."""

    etag: str
    content: bytes


@dataclass
class PolicyBundles:
    """Makes and keeps the bundle of the live policies; without ``key`` it is not signed."""

    activation: Activation
    key: BundleKey | None
    _made: PolicyBundle | None = None

    def etag(self) -> str:
        """The entity tag of the live policies' bundle. Raises ``EngineUnavailable`` before any are live."""
        tree = self.activation.tree()
        signed = "unsigned" if self.key is None else self.key.id
        return f'"{tree.digest}.{tree.commit}.{signed}"'

    async def live(self) -> PolicyBundle:
        """The bundle of the live policies. Raises ``EngineUnavailable`` before any are live."""
        etag, tree = self.etag(), self.activation.tree()
        if self._made is None or self._made.etag != etag:
            # Packing and signing take some milliseconds, which no decision should wait for.
            self._made = PolicyBundle(etag, await asyncio.to_thread(opa_bundle, tree, self.key))
        return self._made
