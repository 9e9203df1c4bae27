"""Forbids features by which the owners of services change the configuration of Envoys, as the operator decides.

In Consul, the owner of a service can give Envoy extensions (Lua among them) and JSON of listeners and clusters, in its
registration or its service-defaults. They act on the sidecars of that service, which call others. An operator who does
not trust the owners can forbid them. The proxy-defaults are not affected, because writing them needs ``operator =
"write"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from xds.mesh.config_entries import ConfigEntries, EntryProblem, ProxySettings, UpstreamSettings
from xds.mesh.facts import ExplicitUpstream, ServiceInstances, Sidecar
from xds.mesh.mesh import Batch, Kind

OVERRIDES_FLAG = "--forbid-overrides"
EXTENSIONS_FLAG = "--forbid-extensions"
PROXY_OVERRIDES = {
    "public_listener_json": "envoy_public_listener_json",
    "local_cluster_json": "envoy_local_cluster_json",
    "tracing_json": "envoy_listener_tracing_json",
}
UPSTREAM_OVERRIDES = {"listener_json": "envoy_listener_json", "cluster_json": "envoy_cluster_json"}


class Allowed(NamedTuple):
    """Settings without what is forbidden, and the names of what was removed."""

    settings: ProxySettings
    gone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Features that are forbidden; by default everything is allowed, as in Consul."""

    extensions: bool = False
    """``EnvoyExtensions`` of service-defaults. A required one keeps its service's sidecars from being served."""
    overrides: bool = False
    """JSON of Envoy's in registrations and service-defaults."""

    def applied(self, batch: Batch) -> Batch:
        """Return a batch of facts without what is forbidden, and with a problem for each of it."""
        if not (self.extensions or self.overrides):
            return batch
        return {key: self._fact(fact, key.kind) for key, fact in batch.items()}

    def _fact(self, fact: object, kind: Kind) -> object:
        if kind is Kind.CONFIG_ENTRIES and isinstance(fact, ConfigEntries):
            return self._entries(fact)
        if isinstance(fact, ServiceInstances) and self.overrides:
            instances = tuple(
                replace(each, sidecar=_sidecar(each.sidecar)) if each.sidecar else each for each in fact.instances
            )
            return replace(fact, instances=instances)
        return fact

    def _entries(self, entries: ConfigEntries) -> ConfigEntries:
        found, problems = {}, list(entries.problems)
        for service, given in entries.service_defaults.items():
            settings, gone = _without_overrides(given) if self.overrides else Allowed(given, ())
            for what in gone:
                problems.append(EntryProblem("service-defaults", service, _text(what, OVERRIDES_FLAG)))
            if self.extensions and given.extensions:
                settings = replace(
                    settings, extensions=tuple(replace(each, forbidden=True) for each in given.extensions)
                )
            found[service] = settings
        return replace(entries, service_defaults=found, problems=tuple(problems))


NOTHING_FORBIDDEN = Forbidden()


def _sidecar(given: Sidecar) -> Sidecar:
    settings, gone = _without_overrides(given.settings)
    upstreams, problems = [], list(given.problems)
    problems += [_text(what, OVERRIDES_FLAG) for what in gone]
    for upstream in given.upstreams:
        allowed, forbidden = _upstream(upstream.settings)
        upstreams.append(_replaced(upstream, allowed))
        problems += [f"upstream {upstream.name!r}: {_text(what, OVERRIDES_FLAG)}" for what in forbidden]
    return replace(given, settings=settings, upstreams=tuple(upstreams), problems=tuple(problems))


def _replaced(upstream: ExplicitUpstream, settings: UpstreamSettings) -> ExplicitUpstream:
    return upstream if settings == upstream.settings else replace(upstream, settings=settings)


def _without_overrides(given: ProxySettings) -> Allowed:
    gone = [text for name, text in PROXY_OVERRIDES.items() if getattr(given, name)]
    nothing: dict[str, None] = dict.fromkeys(PROXY_OVERRIDES)
    settings = replace(given, **nothing) if gone else given
    if given.upstream_defaults is not None:
        defaults, more = _upstream(given.upstream_defaults)
        gone += [f"UpstreamConfig.Defaults.{what}" for what in more]
        settings = replace(settings, upstream_defaults=defaults) if more else settings
    overridden: Mapping[str, UpstreamSettings] = given.upstream_overrides or {}
    found = {name: _upstream(each) for name, each in overridden.items()}
    more = [f"UpstreamConfig.Overrides[{name!r}].{what}" for name, (_, these) in found.items() for what in these]
    if more:
        settings = replace(settings, upstream_overrides={name: each for name, (each, _) in found.items()})
    return Allowed(settings, (*gone, *more))


def _upstream(given: UpstreamSettings) -> tuple[UpstreamSettings, list[str]]:
    gone = [text for name, text in UPSTREAM_OVERRIDES.items() if getattr(given, name)]
    nothing: dict[str, None] = dict.fromkeys(UPSTREAM_OVERRIDES)
    return (replace(given, **nothing) if gone else given), gone


def _text(what: str, flag: str) -> str:
    return f"{what}: the operator forbids it (gossamer serve {flag}); the generated configuration is used"
