"""``policyd doctor``: checks every part of the installation, and says what to do about each that is not well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from policyd.cli.options import (
    ConfigFlag,
    DataDirFlag,
    EngineFlag,
    FactsFlag,
    FleetFlag,
    OutputFlag,
    PoliciesFlag,
    settings_of,
)
from policyd.cli.terminal import BAD, CAREFUL, GOOD, Output, emit, talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from policyd.core.fleet import Fleet
    from policyd.services.doctor import Check
    from policyd.settings import Settings


def doctor(
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
    facts: FactsFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Check every part: clock, fleet, policies, engine, data, facts, identity, TLS, telemetry, limits of the system.

    A failed check ends with exit code 3, a warning does not.

    Example: policyd doctor --data-dir /var/lib/policyd
    """
    import asyncio

    from policyd.cli import failures
    from policyd.services.doctor import Health

    settings = settings_of(config, data_dir=data_dir, fleet=fleet, policies=policies, engine=engine, facts=facts)
    with talk().status("checking"):
        checks = asyncio.run(_checks(settings))
    emit([check.to_json() for check in checks], output, lambda console: _draw(checks, console))
    raise typer.Exit(failures.FOUND if any(check.health is Health.FAIL for check in checks) else failures.DONE)


async def _checks(settings: Settings) -> list[Check]:
    import os

    from policyd.bootstrap import fleet_path
    from policyd.errors import PolicydError
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.data_directory import DataDirectory
    from policyd.services.doctor import (
        Check,
        Health,
        check_clock,
        check_data,
        check_database,
        check_opa,
        check_python,
        failed,
        newest_entry_us,
    )
    from policyd.services.doctor_ledger import check_ledger_time
    from policyd.services.doctor_revisions import check_revisions
    from policyd.services.log_place import directory_of

    checks = [check_python()]
    fleet: Fleet | None = None
    try:
        fleet = load_fleet(fleet_path(settings))
        checks.append(Check("fleet", Health.OK, f"{len(fleet.pools)} pools from {fleet_path(settings)}"))
    except PolicydError as error:
        checks.append(failed("fleet", error))
    directory: DataDirectory | None = None
    try:
        directory = directory_of(settings)
    except PolicydError as error:
        checks.append(failed("database", error))
    checks.append(check_clock(fleet, None if directory is None else await newest_entry_us(directory)))
    if directory is not None and settings.audit.database_url_file is not None:
        checks.append(await check_database(directory))
    if directory is not None:
        checks.append(await check_ledger_time(directory))
        checks += await check_revisions(settings, directory)
    checks += await _engine_checks(settings, fleet)
    binary = os.environ.get("POLICYD_OPA_BINARY", settings.engine.opa_binary)
    if settings.engine.opa_url is None:
        checks.append(check_opa(binary, configured=settings.engine.kind == "opa"))
    checks.append(check_data(settings.data_dir))
    if fleet is not None:
        checks.append(_facts_check(settings, fleet))
    return [*checks, *await _serving_checks(settings)]


async def _serving_checks(settings: Settings) -> list[Check]:
    """What a server needs besides."""
    import os

    from connectors.otel_signals import endpoints
    from policyd.api.tls import TlsFiles
    from policyd.bootstrap_identity import issuer_keys
    from policyd.identity.tokens import TokenFile
    from policyd.services.checkpoints import LogFiles
    from policyd.services.clock import now_us
    from policyd.services.doctor_serving import (
        check_identity,
        check_ntp,
        check_secrets,
        check_telemetry,
        check_tls,
        check_webhooks,
        check_witnesses,
        check_workers,
    )
    from policyd.services.doctor_trust import check_signers
    from policyd.services.webhooks import read_states

    auth = settings.auth
    key = LogFiles.within(settings.data_dir).key
    secrets = [settings.engine.opa_token_file, settings.audit.database_url_file, key if key.exists() else None]
    secrets += [receiver.secret_file for receiver in settings.webhooks.values()]

    def expiries() -> list[tuple[str, int | None]]:
        assert auth.tokens_file is not None
        tokens = TokenFile(auth.tokens_file, now_us)
        tokens.refresh()
        return tokens.expiries()

    async def fetch_keys() -> int:
        assert auth.oidc is not None
        count: int = await issuer_keys(auth.oidc).fetched()
        return count

    return [
        *await check_identity(settings, expiries, fetch_keys),
        *check_tls(settings, lambda: TlsFiles(settings.tls)),
        *check_secrets(path for path in secrets if path is not None),
        *check_webhooks(list(settings.webhooks), lambda: read_states(settings.data_dir)),
        *await check_telemetry(lambda: endpoints(os.environ)),
        check_workers(settings),
        *check_witnesses(settings),
        *check_signers(settings),
        check_ntp(),
    ]


async def _engine_checks(settings: Settings, fleet: Fleet | None) -> list[Check]:
    """Policies and engine: a fresh engine compiles the tree with every check that activation makes."""
    from policyd.bootstrap import make_engine, make_entitlements, policies_path
    from policyd.errors import EngineError, PolicydError
    from policyd.revisions.policy_files import load_policy_tree
    from policyd.services.doctor import Check, Health, check_engine, failed
    from policyd.services.sheets import SheetLimits
    from policyd.services.simulation import Simulator

    try:
        engine = make_engine(settings.engine)
    except PolicydError as error:
        return [failed("engine", error)]
    try:
        checks = [await check_engine(engine)]
        if fleet is None or checks[0].health is Health.FAIL:
            return checks
        root = policies_path(settings)
        try:
            snapshot = await Simulator(engine, make_entitlements, SheetLimits()).build(load_policy_tree(root), fleet)
        except EngineError as error:
            return [failed("engine", error)]
        except PolicydError as error:
            return [*checks, failed("policies", error)]
        packages = len(snapshot.policies.packages)
        # Some engines know their version only once they have compiled something.
        return [await check_engine(engine), Check("policies", Health.OK, f"{packages} packages from {root}")]
    finally:
        await engine.close()


def _facts_check(settings: Settings, fleet: Fleet) -> Check:
    from policyd.bootstrap import make_facts
    from policyd.errors import PolicydError
    from policyd.services.doctor import check_facts, failed

    try:
        holder = make_facts(settings, fleet)
        holder.refresh()
        facts, _ = holder.current()
    except PolicydError as error:
        return failed("facts", error)
    return check_facts(facts, fleet)


def _draw(checks: Sequence[Check], console: Console) -> None:
    from rich.text import Text

    from policyd.cli.terminal import grid
    from policyd.services.doctor import Health

    styles: dict[Health, str] = {Health.OK: GOOD, Health.WARN: CAREFUL, Health.FAIL: BAD}
    table = grid(("part", "health", "seen", "what to do"), keep=("part", "health"))
    for check in checks:
        table.add_row(check.part, Text(check.health.value, style=styles[check.health]), check.detail, check.remedy)
    console.print(table)
    counts: dict[Any, int] = {health: sum(check.health is health for check in checks) for health in Health}
    worst: Any = next(health for health in (Health.FAIL, Health.WARN, Health.OK) if counts[health])
    console.print()
    console.print(", ".join(f"{count} {health}" for health, count in counts.items()), style=styles[worst])
