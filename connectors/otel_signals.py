"""Which signals leave the process over OTLP, by the standard ``OTEL_*`` variables.

Rules: without a variable that asks for it, nothing leaves; a value that is not supported here is a start-up error and
never silence; this module imports no SDK, so that whoever exports nothing does not pay for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policyd.errors import ConfigError

ENDPOINT_DEFAULT: Final = "http://localhost:4318"
"""Where OTLP over HTTP goes when nothing says where."""
SAMPLED_SHARE: Final = 0.1
"""Traced when nothing says otherwise; a caller that traces decides for itself (docs/adr/0032-sampling.md)."""
SIGNALS: Final = ("traces", "metrics", "logs")
PROTOCOL: Final = "http/protobuf"
_EXPORTERS: Final = {"traces": {"otlp", "none"}, "metrics": {"otlp", "none", "prometheus"}, "logs": {"otlp", "none"}}
"""``prometheus`` is `/metrics`, which policyd has without being asked."""


def switched_off(environment: Mapping[str, str]) -> bool:
    """Whether ``OTEL_SDK_DISABLED`` switches the SDK off, and all that stands on it."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exported_signals(environment: Mapping[str, str]) -> frozenset[str]:
    """The signals to export: those whose exporter is ``otlp``, or is not named while an endpoint is.

    Raises ``ConfigError`` for an exporter or a protocol that is not supported.
    """
    if switched_off(environment):
        return frozenset()
    return frozenset(signal for signal in SIGNALS if _exported(signal, environment))


def sampled_share(environment: Mapping[str, str]) -> float:
    """The share of requests that is traced when no sampler is named: ``OTEL_TRACES_SAMPLER_ARG``, or a tenth.

    Raises ``ConfigError`` when it is no share.
    """
    told = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    try:
        share = float(told) if told else SAMPLED_SHARE
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"OTEL_TRACES_SAMPLER_ARG={told} is no share of the requests", remedy="give a number from 0 to 1"
        )
    return share


def endpoints(environment: Mapping[str, str]) -> list[str]:
    """Where the signals go that are exported. Raises as ``exported_signals``."""
    shared = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ENDPOINT_DEFAULT
    return [
        environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or shared
        for signal in sorted(exported_signals(environment))
    ]


def _exported(signal: str, environment: Mapping[str, str]) -> bool:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    endpoint = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    named = {name.strip() for name in environment.get(variable, "").split(",") if name.strip()}
    unknown = sorted(named - _EXPORTERS[signal])
    if unknown:
        raise ConfigError(
            f"{variable}={unknown[0]} is no exporter of policyd", remedy=f"use one of {sorted(_EXPORTERS[signal])}"
        )
    asked = "otlp" in named or (not named and bool(endpoint))
    if asked:
        _check_protocol(signal, environment)
    return asked


def _check_protocol(signal: str, environment: Mapping[str, str]) -> None:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environment.get(variable)
        if protocol and protocol != PROTOCOL:
            raise ConfigError(
                f"{variable}={protocol} is not supported", remedy=f"use {PROTOCOL}, usually at port 4318 of a collector"
            )
        if protocol:
            return
