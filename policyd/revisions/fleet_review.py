"""What a person should look at in a fleet that loads: dated facts that ran out, unknown facts, assumed prices, waste.

Rules: a review never refuses a fleet, and never changes what a decision says; the policies and the core refuse by
themselves what is expired or unknown. ``where`` of a finding is a dotted path of names, such as ``pools.gcp-a.price``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from policyd.core.cost import pricing_of
from policyd.core.fleet import Fleet, Tenant
from policyd.core.inputs import missing_facts, performance_of, pool_side
from policyd.core.places import expand
from policyd.core.pool import Offering, Pool
from policyd.errors import Finding


def review(fleet: Fleet, today: date) -> list[Finding]:
    """Everything worth a look on that day, sorted by place: expiry, unknown facts, assumed prices, unused names."""
    found = [*_models(fleet, today), *_tenants(fleet), *_unused(fleet)]
    for pool in fleet.pools.values():
        at = f"pools.{pool.id}"
        found += [
            *_expired(pool, at, today),
            *_unknown(pool, at, fleet),
            *_assumed(pool, at),
            *_versions(pool, at, fleet),
        ]
    return sorted(found, key=lambda finding: (finding.where, finding.message))


def _expired(pool: Pool, at: str, today: date) -> Iterator[Finding]:
    for certificate in pool.certifications or ():
        if certificate.expires is not None and certificate.expires < today:
            yield Finding(f"{at}.certifications.{certificate.name}", f"expired on {certificate.expires}")
    if pool.evidence.expires is not None and pool.evidence.expires < today:
        yield Finding(f"{at}.evidence", f"expired on {pool.evidence.expires}: have the facts checked again")
    if pool.commitment is not None and pool.commitment.end < today:
        yield Finding(f"{at}.commitment", f"ended on {pool.commitment.end}; what follows: {pool.commitment.follows}")
    if pool.commitment is not None and pool.commitment.start > today:
        yield Finding(f"{at}.commitment", f"starts on {pool.commitment.start}")


def _unknown(pool: Pool, at: str, fleet: Fleet) -> Iterator[Finding]:
    """Facts that a policy or a price reads and nobody declared: such a pool is refused until they are known."""
    optional = frozenset() if pool.kind == "committed" else frozenset({("pool", "commitment")})
    facts = sorted({".".join(path[1:]) for path in missing_facts(pool_side(pool, "", fleet), ("pool",), optional)})
    if pool.capacity is None:
        facts.append("capacity")
    if facts:
        yield Finding(at, f"refused until these facts are known: {', '.join(facts)}")
    if not pool.offerings:
        yield Finding(f"{at}.offerings", "offers no model, so nothing can be placed on it")
    for offering in pool.offerings:
        side = pool_side(pool, offering.model, fleet)
        serving = sorted({".".join(path[1:]) for path in missing_facts(side, ("serving",), frozenset())})
        pricing = pricing_of(pool, offering, performance_of(pool, offering, fleet), fleet)
        if isinstance(pricing, str) and pricing not in serving:
            serving.append(pricing)
        if serving:
            where = f"{at}.offerings.{offering.model}"
            yield Finding(where, f"refused until these facts are known: {', '.join(serving)}")


def _assumed(pool: Pool, at: str) -> Iterator[Finding]:
    if pool.price is not None and pool.price.status == "assumed":
        yield Finding(f"{at}.price", f"has status assumed ({pool.price.source})")
    prices = [offering.price for offering in pool.offerings if offering.price is not None]
    assumed = [price.source for price in prices if price.status == "assumed"]
    if assumed:
        yield Finding(f"{at}.offerings", f"{len(assumed)} of {len(prices)} prices have status assumed ({assumed[0]})")


def _versions(pool: Pool, at: str, fleet: Fleet) -> Iterator[Finding]:
    for offering in pool.offerings:
        fault = _version_fault(offering, fleet)
        if fault:
            yield Finding(f"{at}.offerings.{offering.model}", fault)


def _version_fault(offering: Offering, fleet: Fleet) -> str | None:
    if offering.version is None:
        return None
    versions = {version.version: version for version in fleet.models[offering.model].versions}
    registered = versions.get(offering.version)
    if registered is None:
        return f"serves version {offering.version!r}; the registry knows {', '.join(versions)}"
    if None not in (registered.digest, offering.digest) and registered.digest != offering.digest:
        return f"serves weights {offering.digest}, and the registry has {registered.digest}"
    return None


def _models(fleet: Fleet, today: date) -> Iterator[Finding]:
    for model in fleet.models.values():
        for version in model.versions:
            if version.validation_expires is not None and version.validation_expires < today:
                where = f"models.{model.name}.{version.version}"
                yield Finding(where, f"validation is overdue since {version.validation_expires}")


def _unused(fleet: Fleet) -> Iterator[Finding]:
    offered = {offering.model for pool in fleet.pools.values() for offering in pool.offerings}
    for name in fleet.models.keys() - offered:
        yield Finding(f"models.{name}", "no pool offers it")
    used = {name for tenant in fleet.tenants.values() for project in tenant.projects for name in project.sources}
    for name in fleet.data_sources.keys() - used:
        yield Finding(f"data_sources.{name}", "no project uses it")
    permitted = {name for tenant in fleet.tenants.values() for name in tenant.sla_classes}
    for name in fleet.sla_classes.keys() - permitted:
        yield Finding(f"sla_classes.{name}", "no tenant may use it")


def _tenants(fleet: Fleet) -> Iterator[Finding]:
    for tenant in fleet.tenants.values():
        if not any(_may_serve(pool, tenant, fleet) for pool in fleet.pools.values()):
            yield Finding(f"tenants.{tenant.name}", "no pool lies in its residency and is open to it")


def _may_serve(pool: Pool, tenant: Tenant, fleet: Fleet) -> bool:
    """Whether nothing declared of places and dedication keeps the tenant off; the policies may still."""
    permitted = expand(tenant.floors.residency or (), fleet.groups)
    places = [countries for _, countries in pool.locations if countries is not None]
    inside = bool(places) and all(country in permitted for countries in places for country in countries)
    return inside and (not pool.dedicated_to or tenant.name in pool.dedicated_to) and bool(pool.offerings)
