"""Combines the settings of a sidecar from their levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xds.mesh.config_entries import ConfigEntries, Extension, ProxyMode, ProxySettings, UpstreamSettings
from xds.mesh.facts import ExplicitUpstream, Sidecar
from xds.mesh.names import fold


def effective_settings(sidecar: Sidecar, entries: ConfigEntries) -> ProxySettings:
    """Return the settings of ``sidecar``: its registration, else the service-defaults, else the proxy-defaults.

    The mode is Consul's ``Mode`` of those three in that order and only then ``Config["mode"]``, which is for a Consul
    before 1.10. A sidecar without any of them is in direct mode.
    """
    defaults = entries.defaults_of(sidecar.service)
    merged = sidecar.settings.over(defaults).over(entries.proxy_defaults)
    return replace(
        merged,
        mode=merged.mode or merged.fallback_mode or ProxyMode.DIRECT,
        extensions=extensions_of(sidecar.service, entries) or None,
    )


def is_dialed_directly(sidecar: Sidecar, entries: ConfigEntries) -> bool:
    """Return ``dialed_directly`` of `effective_settings`, quickly: this runs for every instance of every upstream."""
    defaults = entries.defaults_of(sidecar.service)
    levels = (sidecar.settings, defaults, entries.proxy_defaults)
    return next((each.dialed_directly for each in levels if each.dialed_directly is not None), False)


def extensions_of(service: str, entries: ConfigEntries) -> tuple[Extension, ...]:
    """Return the extensions of the sidecars of a service: those of the proxy-defaults, then those of its
    service-defaults."""
    own = entries.defaults_of(service)
    return (*(entries.proxy_defaults.extensions or ()), *(own.extensions or ()))


def implicit_settings(service: str, entries: ConfigEntries) -> tuple[UpstreamSettings, Mapping[str, UpstreamSettings]]:
    """Return how ``service`` calls its upstreams by its own service-defaults.

    That is in general, and for those with ``Overrides`` by their folded names.
    """
    own = entries.defaults_of(service)
    defaults = _defaults(own, None, entries)
    overridden = {name: each.over(defaults) for name, each in (own.upstream_overrides or {}).items()}
    return defaults, {name: each for name, each in overridden.items() if each != defaults}


def explicit_upstreams(sidecar: Sidecar, entries: ConfigEntries) -> tuple[ExplicitUpstream, ...]:
    """Return the upstreams of a registration, each with its resulting settings.

    Its own settings take precedence, then the ``Overrides`` of the sidecar's service, the registration's
    ``MeshGateway``, and the ``Defaults`` (Consul, ``agent/configentry/resolve.go``). Prepared queries have only their
    own, as in Consul.
    """
    if not sidecar.upstreams:
        return ()  # most have none, and this runs for every sidecar
    own = entries.defaults_of(sidecar.service)
    defaults = _defaults(own, sidecar.settings.mesh_gateway, entries)
    found = []
    for upstream in sidecar.upstreams:
        override = (own.upstream_overrides or {}).get(fold(upstream.name), UpstreamSettings())
        merged = upstream.settings if upstream.prepared_query else upstream.settings.over(override).over(defaults)
        found.append(upstream if merged == upstream.settings else replace(upstream, settings=merged))
    return tuple(found)


def _defaults(own: ProxySettings, registered_gateway: str | None, entries: ConfigEntries) -> UpstreamSettings:
    """Return the settings for every upstream; the mode of the mesh gateway has more levels than the others."""
    general = UpstreamSettings(mesh_gateway=own.mesh_gateway or entries.proxy_defaults.mesh_gateway)
    defaults = (own.upstream_defaults or UpstreamSettings()).over(general)
    return UpstreamSettings(mesh_gateway=registered_gateway).over(defaults)


class Differing:
    """Difference between two versions of the config entries, so that a change costs only what it is about."""

    def __init__(self, before: ConfigEntries, after: ConfigEntries) -> None:
        self._before = before
        self._after = after
        tls = before.mesh.outgoing_tls != after.mesh.outgoing_tls
        directly = before.proxy_defaults.dialed_directly != after.proxy_defaults.dialed_directly
        self._upstreams = tls or directly
        shared = [(each.proxy_defaults, each.mesh, each.token_providers) for each in (before, after)]
        self._sidecars = shared[0] != shared[1]
        problems = set(before.problems) ^ set(after.problems)
        self._sidecars |= any(problem.kind != "service-defaults" for problem in problems)
        self._about = {fold(problem.name) for problem in problems}

    def as_upstream(self, service: str) -> bool:
        """Return whether ``service`` may be reached differently, apart from its discovery chain."""
        if self._upstreams or self._before.destination_of(service) != self._after.destination_of(service):
            return True
        before, after = (each.defaults_of(service) for each in (self._before, self._after))
        return before.dialed_directly != after.dialed_directly

    def as_sidecar(self, service: str) -> bool:
        """Return whether the own resources of the sidecars of ``service`` may differ."""
        if self._sidecars or fold(service) in self._about:
            return True
        return self._before.defaults_of(service) != self._after.defaults_of(service)
