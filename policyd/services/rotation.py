"""A new signing key for a log: the old one signs an entry that names it, and then gives way.

    log.key ──a new seed in log.key.next──► an entry, signed with the old key ──durable and checkpointed──► log.key

Rules: the log must not be open elsewhere; whoever trusts the old key trusts the new one by that entry; a rotation that
a crash cuts off leaves the old key in force, and can be begun again; the old seed is not kept.
"""

from __future__ import annotations

import os
import secrets
from base64 import b64encode

from audit.checkpoint import sign_rotation
from audit.errors import AuditFailure
from audit.note import SeedSigner, VerifierKey
from audit.record import Entry, encode
from audit.signer import open_signer, read_public, write_durably, write_public
from policyd.errors import AuditError
from policyd.services.checkpoints import LogFiles, audit_error
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory

SEED_BYTES = 32


async def rotate(directory: DataDirectory) -> VerifierKey:
    """Replace the signing key of the log in a directory that this process has locked. Answers the new public key."""
    committer = await Committer.open(directory)
    files = LogFiles.within(directory.path)
    try:
        old = open_signer(files.key, committer.origin, create=False)
        new = SeedSigner(committer.origin, secrets.token_bytes(SEED_BYTES))
        following = files.key.with_name(f"{files.key.name}.next")
        write_durably(following, f"{new.text}\n".encode(), 0o600)
        await committer.submit(_entry(old, committer.origin, new.key))
    except AuditFailure as error:
        raise audit_error("the key cannot be replaced", error) from error
    except OSError as error:
        raise AuditError(f"the new key cannot be written: {error.strerror}") from error
    finally:
        # The last checkpoint of the old key covers the entry that names the new one.
        await committer.close()
    try:
        write_public(files.public, (*read_public(files.public), new.key))
        following.replace(files.key)
    except OSError as error:
        raise AuditError(f"the new key cannot be put in place: {error.strerror}") from error
    return new.key


def _entry(old: SeedSigner, origin: str, new: VerifierKey) -> Entry:
    time_us = now_us()
    entry_id = uuid7(time_us)
    note = b64encode(sign_rotation(old, origin, new)).decode("ascii")
    # Verification looks for the kind right behind the id, so that no field comes before or between them.
    body = encode({"id": entry_id, "kind": "key", "note": note, "time": rfc3339(time_us), "v": 1}, os.urandom(16))
    return Entry("key", entry_id, time_us, body)
