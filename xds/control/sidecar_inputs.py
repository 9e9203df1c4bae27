"""Inputs of one sidecar's own resources, complete and immutable: equal inputs give equal resources."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from xds.control.rejections import Part
from xds.envoy.clusters import Here
from xds.envoy.dns import Named
from xds.envoy.egress import EgressHost
from xds.envoy.inbound import Admission
from xds.mesh.chains import DiscoveryChain, Target
from xds.mesh.config_entries import ClusterMode, MeshSettings, ProxySettings
from xds.mesh.facts import ExplicitUpstream, Instance, Leaf, Roots, Sidecar, VirtualAddress
from xds.policy.mesh_wide_settings import MeshWideSettings


@dataclass(frozen=True, slots=True)
class ExplicitTarget:
    """Explicit upstream with its chain and the instances that the chain ends at."""

    upstream: ExplicitUpstream
    chain: DiscoveryChain | None
    instances: tuple[tuple[Target, tuple[Instance, ...]], ...] = ()
    unread: bool = False
    """Whether something about it has not been read yet."""
    problems: tuple[str, ...] = ()
    """Reasons why some of its instances can't be called."""

    def without_listener(self) -> ExplicitTarget:
        """Return the same with the generated listener in place of one that a user gave."""
        settings = replace(self.upstream.settings, listener_json=None)
        return replace(self, upstream=replace(self.upstream, settings=settings))


@dataclass(frozen=True, slots=True)
class SidecarInputs:
    """Inputs of one sidecar's own resources; equal inputs give equal resources."""

    sidecar: Sidecar
    settings: ProxySettings
    mesh: MeshSettings
    admission: Admission
    problems: tuple[str, ...]
    """Problems of the config entries and intentions that are about it."""
    roots: Roots
    leaf: Leaf
    here: Here
    mesh_wide: MeshWideSettings
    listed: tuple[tuple[VirtualAddress, str], ...]
    """Addresses that the outbound listener has to list, each with its protocol."""
    explicit: tuple[ExplicitTarget, ...]
    hosts: frozenset[EgressHost] = frozenset()
    """Hosts outside the mesh that are reached through a gateway."""
    dual_stack: bool = False
    clusters: ClusterMode = ClusterMode.EAGER
    on_demand: bool = False
    """Whether the clusters of implicit upstreams are sent when they are first dialed."""
    dns_port: int = 0
    named: tuple[Named, ...] = ()
    """Upstreams and their virtual IPs for DNS, where it is answered."""

    def parts(self) -> Iterator[Part]:
        """Yield what users gave to be put into listeners and may be left out of them."""
        settings = self.settings
        given = {
            Part.ACCESS_LOGS: settings.access_logs,
            Part.TRACING: settings.tracing_json,
            Part.EXTENSIONS: any(not each.required for each in settings.extensions or ()),
            Part.OVERRIDES: settings.public_listener_json or any(self.listeners_given()),
            Part.HEADERS: settings.max_request_headers_kb,
        }
        yield from (part for part, value in given.items() if value)

    def listeners_given(self) -> list[str | None]:
        """Return the listeners of explicit upstreams that users gave as JSON."""
        return [each.upstream.settings.listener_json for each in self.explicit]

    def without(self, parts: Collection[Part]) -> SidecarInputs:
        """Return the same inputs without some of what users gave; required extensions stay."""
        gone: dict[str, Any] = {}
        for part, field in _FIELDS.items():
            if part in parts:
                gone[field] = None
        if Part.EXTENSIONS in parts:
            gone["extensions"] = tuple(each for each in self.settings.extensions or () if each.required)
        explicit = self.explicit
        if Part.OVERRIDES in parts:
            explicit = tuple(each.without_listener() for each in explicit)
        return replace(self, settings=replace(self.settings, **gone), explicit=explicit)


_FIELDS = {
    Part.ACCESS_LOGS: "access_logs",
    Part.TRACING: "tracing_json",
    Part.EXTENSIONS: "extensions",
    Part.OVERRIDES: "public_listener_json",
    Part.HEADERS: "max_request_headers_kb",
}
"""Setting that gives each part."""
