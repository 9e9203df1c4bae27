"""What a sidecar's settings come to, level by level."""

from __future__ import annotations

from dataclasses import replace

from xds.mesh.facts import ExplicitUpstream, Sidecar
from xds.mesh.settings import ConfigEntries, Extension, ProxyMode, ProxySettings, UpstreamSettings


def effective_settings(sidecar: Sidecar, entries: ConfigEntries) -> ProxySettings:
    """The settings of ``sidecar``: its registration, else the service-defaults, else the proxy-defaults.

    The mode is Consul's ``Mode`` of those three in that order and only then ``Config["mode"]``, which is for a Consul
    before 1.10; a sidecar of which nobody says anything is in direct mode.
    """
    defaults = entries.service_defaults.get(sidecar.service, ProxySettings())
    merged = sidecar.settings.over(defaults).over(entries.proxy_defaults)
    return replace(
        merged,
        mode=merged.mode or merged.fallback_mode or ProxyMode.DIRECT,
        extensions=extensions_of(sidecar.service, entries) or None,
    )


def extensions_of(service: str, entries: ConfigEntries) -> tuple[Extension, ...]:
    """The extensions of the sidecars of a service: of the proxy-defaults, then of its service-defaults."""
    own = entries.service_defaults.get(service, ProxySettings())
    return (*(entries.proxy_defaults.extensions or ()), *(own.extensions or ()))


def upstream_settings(service: str, upstream: str, entries: ConfigEntries) -> UpstreamSettings:
    """How ``service`` calls ``upstream``: by its own service-defaults, ``Overrides`` before ``Defaults``."""
    said = entries.service_defaults.get(service, ProxySettings())
    override = (said.upstream_overrides or {}).get(upstream, UpstreamSettings())
    return override.over(_defaults(said, None, entries))


def explicit_upstreams(sidecar: Sidecar, entries: ConfigEntries) -> tuple[ExplicitUpstream, ...]:
    """The upstreams of a registration, each with what its settings come to.

    Its own, else the ``Overrides`` of the sidecar's service, else the registration's ``MeshGateway``, else the
    ``Defaults`` (Consul, ``agent/configentry/resolve.go``). Prepared queries have their own alone, as in Consul.
    """
    if not sidecar.upstreams:
        return ()  # most have none, and this is asked of every sidecar
    said = entries.service_defaults.get(sidecar.service, ProxySettings())
    defaults = _defaults(said, sidecar.settings.mesh_gateway, entries)
    found = []
    for upstream in sidecar.upstreams:
        override = (said.upstream_overrides or {}).get(upstream.name, UpstreamSettings())
        merged = upstream.settings if upstream.prepared_query else upstream.settings.over(override).over(defaults)
        found.append(upstream if merged == upstream.settings else replace(upstream, settings=merged))
    return tuple(found)


def _defaults(said: ProxySettings, registered_gateway: str | None, entries: ConfigEntries) -> UpstreamSettings:
    """What holds for every upstream; the order of the mesh gateway's mode has more levels than the rest."""
    general = UpstreamSettings(mesh_gateway=said.mesh_gateway or entries.proxy_defaults.mesh_gateway)
    defaults = (said.upstream_defaults or UpstreamSettings()).over(general)
    return UpstreamSettings(mesh_gateway=registered_gateway).over(defaults)
