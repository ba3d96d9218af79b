"""The programs of others that some tests run, and how a machine gets them."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {"cc": "gcc libc6-dev", "curl": "curl", "git": "git", "ssh-keygen": "openssh-client"}
"""Debian's packages."""


def missing(*programs: str) -> str | None:
    """Why a test that runs these programs is skipped here, with what installs them; None when all are there."""
    lacking = [program for program in programs if shutil.which(program) is None]
    packages = " ".join(PACKAGES[program] for program in lacking)
    return f"no {' or '.join(lacking)}: apt-get install {packages}" if lacking else None


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips a test where one of these programs is missing."""
    why = missing(*programs)
    return pytest.mark.skipif(why is not None, reason=why or "")
