"""The policies of a revision as a bundle that OPA servers follow.

    data.json  residency/residency.rego  …  .manifest  .signatures.json

The format is OPA's (https://www.openpolicyagent.org/docs/management-bundles): a gzipped tar archive; a manifest with
the revision and the roots that the bundle owns; and, when there is a key, one JSON Web Token over the SHA-256 of each
file.

Rules: what OPA gets is what policyd evaluates, the modules and ``data.settings``, and nothing beside: no tests, no
cases, no Casbin rows. The same revision gives the same bytes but for the signature, which has something random in it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from policyd.engines.compiler import SETTINGS, settings_of
from policyd.engines.source import read_source
from policyd.errors import ConfigError, PolicyInvalid
from policyd.ports import PolicyTree

MANIFEST: Final = ".manifest"
SIGNATURES: Final = ".signatures.json"
DATA: Final = "data.json"
RSA_MIN_BITS: Final = 2_048


@dataclass(frozen=True, slots=True)
class BundleKey:
    """A private key that signs bundles; ``id`` is the name under which OPA knows its public half."""

    id: str
    algorithm: str
    key: Any

    @classmethod
    def read(cls, pem: bytes, id: str) -> BundleKey:
        """An unencrypted PEM key: P-256 signs with ES256, RSA with RS256. Raises ``ConfigError``."""
        # Imported here because signatures take a fifth of a second, which servers without a key do without.
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"the key that signs bundles is no unencrypted PEM private key: {error}") from None
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(id, "ES256", key)
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= RSA_MIN_BITS:
            return cls(id, "RS256", key)
        raise ConfigError(f"the key that signs bundles is neither P-256 nor RSA of {RSA_MIN_BITS} bits or more")


def opa_bundle(tree: PolicyTree, key: BundleKey | None) -> bytes:
    """The archive. Raises ``PolicyInvalid`` for a tree whose settings cannot be read, which no live tree is."""
    settings, findings = settings_of(tree.data)
    if findings:
        raise PolicyInvalid(f"the settings cannot be read: {findings[0]}", findings=findings)
    structured = {MANIFEST: _manifest(tree), DATA: {SETTINGS: settings}}
    plain = {str(path): text.encode() for path, text in tree.modules.items()}
    files = {**{name: _canonical(value) for name, value in structured.items()}, **plain}
    if key is not None:
        files[SIGNATURES] = _canonical({"signatures": [_token(files, key)]})
    return _archive(files)


def _manifest(tree: PolicyTree) -> dict[str, Any]:
    packages = {read_source(text).package for text in tree.modules.values()}
    return {
        "revision": tree.digest,
        "roots": sorted({package.split(".")[0] for package in packages} | {SETTINGS}),
        "rego_version": 1,
        "metadata": {"policyd": {"digest": tree.digest, "commit": tree.commit}},
    }


def _token(files: Mapping[str, bytes], key: BundleKey) -> str:
    import jwt

    # OPA hashes JSON by its values, with sorted keys and no blanks: which is how these files are written.
    listed = [
        {"name": name, "hash": hashlib.sha256(content).hexdigest(), "algorithm": "SHA-256"}
        for name, content in sorted(files.items())
    ]
    return jwt.encode({"files": listed}, key.key, algorithm=key.algorithm, headers={"kid": key.id})


def _canonical(value: Any) -> bytes:
    """JSON as OPA writes it where it hashes: Go escapes two line separators besides what JSON demands."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()


def _archive(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as pressed,
        tarfile.open(fileobj=pressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
