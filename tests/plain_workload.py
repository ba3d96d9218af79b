"""A workload that asks for nothing special, for tests of the core; each changes what it is about."""

from __future__ import annotations

from policyd.core.workload import Workload

PLAIN = Workload(
    scope="request",
    tenant="t",
    project="p",
    environment="prod",
    model="m",
    model_version="1",
    urgency="standard",
    traffic="steady",
    task="chat",
    memory_bound=False,
    classification="internal",
    categories=(),
    permitted_countries=("DE",),
    sources=(),
    sla_class="standard",
    accelerators=(),
    gpu_count=0,
    gpu_memory_gib=0,
    input_tokens=1_000,
    max_output_tokens=500,
    requests_per_hour=60,
    duration_hours=1,
)
