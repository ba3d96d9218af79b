"""What every test may rely on: a real OPA and a real PostgreSQL when there is one, and the rules for skipped tests.

- ``--long`` also runs the tests marked ``long``; they are deselected, not skipped, otherwise.
- ``POLICYD_REQUIRE`` names what this machine must have (``opa,postgresql``): a skip for lack of it then is a failure.
- Hypothesis has no deadline per example, since machines differ; the number of examples is the limit.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.fault_table import counted, pytest_runtest_setup, pytest_terminal_summary

if TYPE_CHECKING:
    from tests.postgresql_server import PostgresqlServer

__all__ = ["counted", "pytest_runtest_setup", "pytest_terminal_summary"]  # fixtures and hooks of every test

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

settings.register_profile("short", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("short"), max_examples=500)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    slow = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def refuse_required_skip(report: Report) -> Report:
    """Turn a skip into a failure when its reason or its test's name is about something in ``POLICYD_REQUIRE``."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    reason = str(report.longrepr)
    required = [name.strip() for name in os.environ.get("POLICYD_REQUIRE", "").split(",") if name.strip()]
    for name in required:
        if re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", f"{report.nodeid} {reason}", re.IGNORECASE):
            report.outcome = "failed"
            report.longrepr = f"skipped, but POLICYD_REQUIRE={name}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_required_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_required_skip((yield))


@pytest.fixture(scope="session")
def opa_binary() -> Path:
    """A real OPA: ``POLICYD_OPA_BINARY``, else ``opa`` on the path."""
    named = os.environ.get("POLICYD_OPA_BINARY")
    found = named or shutil.which("opa")
    if not found:
        pytest.skip("no opa binary: set POLICYD_OPA_BINARY")
    if named and not os.access(named, os.X_OK):
        pytest.fail(f"POLICYD_OPA_BINARY={named} is not an executable file")
    return Path(found)


@pytest.fixture(scope="session")
def postgresql() -> Generator[PostgresqlServer, None, None]:
    """A real PostgreSQL, started for this session and ended with it."""
    from tests.postgresql_server import PostgresqlServer, binaries

    found = binaries()
    if found is None:
        pytest.skip("no postgresql: apt-get install postgresql")
    server = PostgresqlServer(found)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def database(postgresql: PostgresqlServer) -> str:
    """The address of a database of one test."""
    return postgresql.make_database()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent
