"""Settings: one ``policyd.yaml`` < ``POLICYD_*`` environment (``__`` nests) < flags. Without any of them, it works.

Rules: an unknown key is an error that names the nearest one; every limit is named here, with its default and unit;
secrets are files, never values. Loading never touches the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from policyd.activation_settings import ActivationSettings
from policyd.documents import Document, Spot, model_findings, read_yaml
from policyd.errors import ConfigError, Finding
from policyd.identity_settings import AuthSettings, LimitSettings, TlsSettings
from policyd.retention_settings import RetentionSettings
from policyd.revision_settings import RevisionSettings
from policyd.source_settings import SourcesSettings
from policyd.source_settings import is_loopback as is_loopback
from policyd.waiver_settings import WaiverSettings

PREFIX = "POLICYD_"


BudgetUnit = Literal["usd", "tokens", "gpu_hours", "requests", "gpus", "in_flight"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSettings(_Section):
    """Where policies are evaluated, and how much cold work is let in."""

    kind: Literal["embedded", "opa"] = Field(
        "embedded", description="`embedded` needs nothing else; `opa` is a real OPA"
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(2, description="worker processes of the embedded engine")
    deadline_ms: Annotated[int, Field(ge=10, le=60_000)] = Field(
        1_000, description="longest evaluation of one question"
    )
    sheet_wait_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(
        8_000, description="longest wait of a request for the verdicts of a new workload class"
    )
    opa_url: str | None = Field(None, description="an OPA that runs already; without it policyd starts one")
    opa_binary: str = Field("opa", description="the OPA to start, a path or a name on PATH")
    opa_token_file: Path | None = Field(None, description="file with the bearer token for `opa_url`")
    sheets_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(4_096, description="sheets kept in memory")
    sheets_max_mib: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        512, description="memory of these, about; a sheet of 100 pools takes one"
    )
    answers_max: Annotated[int, Field(ge=1, le=10_000_000)] = Field(65_536, description="answers of packages kept")
    cold_in_progress_max: Annotated[int, Field(ge=1, le=4_096)] = Field(32, description="classes evaluated at once")
    cold_per_tenant_max: Annotated[int, Field(ge=1, le=4_096)] = Field(8, description="of these, for one tenant")
    cold_per_tenant_per_s: Annotated[int, Field(ge=1, le=100_000)] = Field(
        50, description="new classes a tenant may bring"
    )
    cold_per_tenant_burst: Annotated[int, Field(ge=1, le=100_000)] = Field(
        200, description="new classes at once, after quiet"
    )
    quarantine_ms: Annotated[int, Field(ge=0, le=3_600_000)] = Field(
        5_000, description="how long a class whose evaluation failed is answered without asking again"
    )
    warm_classes_max: Annotated[int, Field(ge=0, le=100_000)] = Field(
        256, description="recent classes that a reload evaluates before it swaps"
    )
    warm_wait_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(5_000, description="longest time for that")


class WitnessSettings(_Section):
    """Another party that cosigns the checkpoints of the log (c2sp.org/tlog-witness)."""

    url: str = Field(description="where it answers `add-checkpoint`; https, or http on loopback")
    key: str = Field(
        description="its public key, name+id+base64, with which it cosigns", min_length=1, max_length=1_024
    )

    @field_validator("url")
    @classmethod
    def _shown_safely(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            return value
        raise ValueError("is no https address; http only on loopback")


class AuditSettings(_Section):
    """How the log is written."""

    durability: Literal["power_safe", "process_safe"] = Field(
        "power_safe", description="what an acknowledged decision survives: a power cut, or the end of the process"
    )
    batch_max_entries: Annotated[int, Field(ge=1, le=4_096)] = Field(512, description="entries in one transaction")
    queue_max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = Field(4_096, description="entries that may wait")
    search_deadline_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(10_000, description="longest search")
    report_rows_max: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        10_000, description="rows in one table of a report; one that would have more is refused"
    )
    database_url_file: Path | None = Field(
        None,
        description="file with the address of a PostgreSQL database, `postgresql://user:password@host/name`, "
        "for the logs of all replicas; without it the log is a file in `data_dir`",
    )
    database_deadline_ms: Annotated[int, Field(ge=500, le=600_000)] = Field(
        10_000,
        description="longest wait for that database to answer one statement; then nothing is allowed until it does",
    )
    personal_key_file: Path | None = Field(
        None,
        description="file with the key that wraps the keys of personal fields, mode 0600; made at the first start; "
        "without it `personal.key` in `data_dir`. Replicas on one database share it",
    )
    personal_keys_path: Path | None = Field(
        None,
        description="file of the wrapped keys of personal fields, of a log in a file; "
        "without it `personal.sqlite` in `data_dir`",
    )
    origin: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")] | None = Field(
        None,
        description="name of this replica's log in that database; without it a random one, kept in `data_dir`",
    )
    seen_interval_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        60_000,
        description="how often the newest checkpoints of the other logs in the database become an entry of this one",
    )
    witnesses: Annotated[tuple[WitnessSettings, ...], Field(max_length=16)] = Field(
        (), description="who is asked to cosign the newest checkpoint"
    )
    witness_interval_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        10_000, description="how often they are asked, when there is something new"
    )
    restore_keys_file: Path | None = Field(
        None,
        description="file with the public keys, one a line, of the persons who may let a log go on that has lost "
        "entries: two of them sign",
    )


class BundleSettings(_Section):
    """The bundle of the live policies, for OPA servers that follow them."""

    signing_key_file: Path | None = Field(
        None, description="private key, PEM, P-256 or RSA, that signs bundles; none: they are not signed"
    )
    key_id: str = Field(
        "policyd", description="the name under which OPA knows its public key", pattern=r"^[A-Za-z0-9._-]{1,64}$"
    )


class FactsSettings(_Section):
    """Where headroom, queue, health and spent budgets come from."""

    path: Path | None = Field(None, description="a facts file; without it the declared capacity counts as free")
    refresh_ms: Annotated[int, Field(ge=50, le=3_600_000)] = Field(1_000, description="how often it is looked at")
    max_age_ms: Annotated[int, Field(ge=1_000, le=31_536_000_000)] | None = Field(
        None, description="oldest `observed_at` that still counts; older facts stop decisions. none: any age counts"
    )


class ApiSettings(_Section):
    """Limits of the HTTP surface."""

    body_max_bytes: Annotated[int, Field(ge=1_024, le=16_777_216)] = Field(262_144, description="longest request body")
    batch_max_items: Annotated[int, Field(ge=1, le=1_000)] = Field(100, description="requests in a batch")
    batch_body_max_bytes: Annotated[int, Field(ge=1_024, le=67_108_864)] = Field(
        2_097_152, description="longest body of a batch"
    )
    batch_in_progress_max: Annotated[int, Field(ge=1, le=1_000)] = Field(16, description="batches in progress")
    in_flight_max: Annotated[int, Field(ge=1, le=100_000)] = Field(1_024, description="requests in progress")
    queue_max_ms: Annotated[int, Field(ge=10, le=600_000)] = Field(
        2_000,
        description="longest wait to be recorded that a new decision may expect; beyond it, it is refused at once",
    )
    idempotency_ttl_ms: Annotated[int, Field(ge=1_000, le=2_592_000_000)] = Field(
        86_400_000, description="how long the answer under an `Idempotency-Key` is kept"
    )
    idempotency_keys_max: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        1_000_000, description="keys that are kept; beyond them a request with a new key is refused"
    )
    public_url: Annotated[str, Field(pattern=r"^https?://[^/?#\s]+(/[^?#\s]*[^/?#\s])?$")] | None = Field(
        None, description="the address that callers use, as discovery tells it; none: the one that the request came to"
    )
    request_timeout_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(10_000, description="longest request")


class TelemetrySettings(_Section):
    """What the server tells about itself. OTLP follows the ``OTEL_*`` variables, and is off without them."""

    metrics: bool = Field(True, description="count, and answer `GET /metrics`")
    tenant_label: bool = Field(False, description="metrics of decisions carry the tenant too: one series more for each")
    log_format: Literal["text", "json"] = Field("text", description="lines of the server's own log on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="the least that is logged")


class BudgetSettings(_Section):
    """How budgets are held."""

    hold_ms: Annotated[int, Field(ge=1_000, le=2_592_000_000)] = Field(
        900_000,
        description="how long a request holds budget before it counts as spent; a deployment, longer by its duration",
    )
    clock_jump_ms: Annotated[int, Field(ge=60_000, le=2_592_000_000)] = Field(
        86_400_000,
        description="a start that finds the clock so far ahead of ledger time records a clock jump",
    )

    raise_alone_max: dict[BudgetUnit, Annotated[int, Field(ge=0, le=2**53 - 1)]] = Field(
        {},
        description="up to which limit, by unit (`usd`, `tokens`, `gpu_hours`, …), who may raise does so alone; "
        "a unit that is not named takes a second person for every raise",
    )


class ComplianceSettings(_Section):
    """Judging placements that are in force by the revisions of today."""

    interval_ms: Annotated[int, Field(ge=60_000, le=2_592_000_000)] | None = Field(
        None, description="how often the server does so and records it; none: only `policyd compliance` does"
    )
    within_days: Annotated[int, Field(ge=1, le=3_650)] = Field(
        30, description="for how many days what was decided or settled counts as in force"
    )


class ProposalSettings(_Section):
    """What one person proposes and another approves."""

    ttl_ms: Annotated[int, Field(ge=60_000, le=2_592_000_000)] = Field(
        604_800_000, description="how long a proposal waits for its second person before it expires"
    )
    open_max: Annotated[int, Field(ge=1, le=1_000)] = Field(
        1_000, description="proposals that may wait; beyond them a new one is refused"
    )


WebhookName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
EventName = Literal[
    "budget.threshold",
    "budget.set",
    "proposal.opened",
    "proposal.approved",
    "compliance.lapsed",
    "waiver.requested",
    "waiver.granted",
    "waiver.break_glass",
]


class WebhookSettings(_Section):
    """Who is told of events, by HTTP POST, each under a name of its own."""

    url: str = Field(description="where to; http or https, without a user and a password")
    events: Annotated[tuple[EventName, ...], Field(min_length=1)] = Field(
        ("budget.threshold",),
        description="of what: `budget.threshold`, `budget.set`, `proposal.opened`, `proposal.approved`, "
        "`compliance.lapsed`, `waiver.requested`, `waiver.granted`, `waiver.break_glass`",
    )
    form: Literal["json", "alertmanager", "servicenow", "jira"] = Field(
        "json",
        description="`json`: one object; `alertmanager`: a list of one alert, for its `/api/v2/alerts`; "
        "`servicenow` and `jira`: the fields of a record or an issue",
    )
    secret_file: Path | None = Field(
        None, description="file with the secret that signs (Standard Webhooks, HMAC-SHA-256); none: nothing is signed"
    )
    timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = Field(5_000, description="longest attempt")
    retry_first_ms: Annotated[int, Field(ge=10, le=600_000)] = Field(
        1_000, description="pause after the first failure; each further one doubles it"
    )
    retry_max_ms: Annotated[int, Field(ge=10, le=3_600_000)] = Field(300_000, description="longest pause")
    give_up_ms: Annotated[int, Field(ge=1_000, le=2_592_000_000)] = Field(
        86_400_000, description="how long one event is tried before it is given up, counted and logged"
    )

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("is no http or https address without a user and a password")
        return value


class SimulationSettings(_Section):
    """What ``POST /v1/simulations`` may do beside the decisions."""

    trees: dict[str, Path] = Field(
        {}, description="policy and fleet directories that a simulation may name, by their names there"
    )
    in_progress_max: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="simulations in progress, and as many comparisons; they take turns, one workload at a time"
    )
    per_caller_max: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="of these, for one principal, and for all principals of one tenant"
    )
    workloads_max: Annotated[int, Field(ge=1, le=1_000)] = Field(100, description="workloads of one simulation")
    sheets_max: Annotated[int, Field(ge=1, le=100_000)] = Field(256, description="sheets kept of simulations")
    sheets_max_mib: Annotated[int, Field(ge=1, le=1_048_576)] = Field(64, description="memory of these, about")
    answers_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        16_384, description="answers of packages kept of simulations"
    )


class Settings(_Section):
    """All settings of policyd."""

    data_dir: Path = Field(Path("policyd-data"), description="directory of the decision log")
    fleet: Path | None = Field(None, description="fleet directory or file; without it the shipped example")
    policies: Path | None = Field(None, description="policy directory; without it the shipped policies")
    host: str = Field("127.0.0.1", description="address to listen on; loopback only until authentication is set up")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8_470, description="port to listen on; 0 takes a free one")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="API processes on one port; with more than one, another process writes the log"
    )
    decision_ttl_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        60_000, description="how long an answer holds"
    )
    engine: EngineSettings = EngineSettings()
    audit: AuditSettings = AuditSettings()
    retention: RetentionSettings = RetentionSettings()
    facts: FactsSettings = FactsSettings()
    api: ApiSettings = ApiSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    budgets: BudgetSettings = BudgetSettings()
    proposals: ProposalSettings = ProposalSettings()
    waivers: WaiverSettings = WaiverSettings()
    webhooks: Annotated[dict[WebhookName, WebhookSettings], Field(max_length=16)] = Field(
        default_factory=dict, description="receivers of events, by name, such as `webhooks.ops.url`"
    )
    simulation: SimulationSettings = SimulationSettings()
    sources: SourcesSettings = SourcesSettings()
    compliance: ComplianceSettings = ComplianceSettings()
    bundles: BundleSettings = BundleSettings()
    revisions: RevisionSettings = RevisionSettings()
    activation: ActivationSettings = ActivationSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    limits: LimitSettings = LimitSettings()

    def part_of(self, limit: int) -> int:
        """The part of a limit that one API process holds callers to, rounded up: connections are dealt out to the
        processes, and together they must not admit many times what the limit says."""
        return -(-limit // self.workers)


def load_settings(
    file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """The settings from file, environment and flags, later ones winning.

    ``flags`` is nested like the file; None values are ignored. Without ``file``, ``policyd.yaml`` of the working
    directory is read when it exists. Raises ``ConfigError`` with one finding for each fault.
    """
    path = file if file is not None else Path("policyd.yaml")
    read = _read(path) if file is not None or path.exists() else Document({}, Spot(str(path), 1), ())
    variables = _environment(environment)
    merged = _merge(_merge(read.value, variables.value), dict(flags or {}))
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        spot = _spots_laid_over(read.spot, variables.spot) if variables.value else read.spot
        findings = model_findings(error, Settings, spot, merged)
        raise ConfigError(f"the settings do not load: {findings[0]}", findings=findings) from None
    _refuse_open_door(settings)
    _refuse_half_tls(settings)
    _refuse_two_places(settings)
    _refuse_unsigned_places(settings)
    return settings


def _read(path: Path) -> Document:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    document = read_yaml(content, str(path))
    findings = list(document.findings)
    if not findings and not isinstance(document.value, dict | None):
        findings.append(Finding(str(document.spot), "does not hold settings by name"))
    if findings:
        raise ConfigError(f"the settings do not load: {findings[0]}", findings=findings)
    return Document(document.value or {}, document.spot, ())


def _environment(environment: Mapping[str, str] | None) -> Document:
    """``POLICYD_ENGINE__KIND=opa`` as ``{"engine": {"kind": "opa"}}``. Unknown names are faults like any other."""
    nested: dict[str, Any] = {}
    spot = Spot("the environment", 0)
    for name, value in (os.environ if environment is None else environment).items():
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS:
            continue
        *sections, last = name[len(PREFIX) :].lower().split("__")
        value_or_section: Any = value
        stands = Spot(name, 0)
        for section in reversed([*sections, last]):
            value_or_section = {section: value_or_section}
            stands = Spot(name, 0, {section: stands})
        nested = _merge(nested, value_or_section)
        spot = _spots_laid_over(spot, stands)
    return Document(nested, spot, ())


def _spots_laid_over(under: Spot, over: Spot) -> Spot:
    """The spots of values that were merged: where ``over`` has one, it stands there."""
    if not over.below:
        return over
    shared = under.below.keys() & over.below.keys()
    both = {key: _spots_laid_over(under.below[key], over.below[key]) for key in shared}
    return replace(under, below={**under.below, **over.below, **both})


_NOT_SETTINGS = frozenset(
    {"POLICYD_OPA_BINARY", "POLICYD_REQUIRE", "POLICYD_CONFIG", "POLICYD_DEBUG", "POLICYD_TOKEN_FILE"}
)
"""Variables of the test suite and of the command line that are no settings."""


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if value is None:
            continue
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _refuse_open_door(settings: Settings) -> None:
    if not is_loopback(settings.host) and not settings.auth.configured:
        raise ConfigError(
            f"host {settings.host!r} is not loopback, and no authentication is configured",
            remedy="set up auth.tokens_file, auth.oidc or auth.certificates, or listen on 127.0.0.1",
        )


def _refuse_unsigned_places(settings: Settings) -> None:
    """Only a commit is signed, so where signatures are required nothing else may be read."""
    if not settings.revisions.require_signed:
        return
    for kind in ("policies", "fleet"):
        source = getattr(settings.sources, kind)
        if source is None or source.kind != "git":
            raise ConfigError(
                f"revisions.require_signed needs a git repository as sources.{kind}: nothing else has signed commits",
                remedy=f"follow the {kind} from a git repository, or do not require signatures",
            )


def _refuse_half_tls(settings: Settings) -> None:
    tls = settings.tls
    if (tls.certificate_file is None) != (tls.key_file is None):
        raise ConfigError("tls.certificate_file and tls.key_file go together, and one of them is missing")
    if tls.client_ca_file is not None and tls.certificate_file is None:
        raise ConfigError("tls.client_ca_file needs tls.certificate_file and tls.key_file")
    if settings.auth.certificates and tls.client_ca_file is None:
        raise ConfigError("auth.certificates needs tls.client_ca_file: without it no client certificate is verified")


def _refuse_two_places(settings: Settings) -> None:
    for name in ("policies", "fleet"):
        if getattr(settings, name) is not None and getattr(settings.sources, name) is not None:
            raise ConfigError(f"{name} and sources.{name} are both set; the {name} come from one place")
