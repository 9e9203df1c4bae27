"""What a sidecar's settings come to, level by level."""

from __future__ import annotations

from dataclasses import replace

from xds.mesh.facts import Sidecar
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
    return override.over(said.upstream_defaults or UpstreamSettings())
