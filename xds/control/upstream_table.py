"""A table of upstreams encoded with one kind of settings, shared by all services that call them with these settings.

A thousand services that call ten thousand in the same way differ only in which of them they may call. So the resources
of the upstreams are in this table once, with the upstream that each belongs to, and a `ServiceView` only checks whether
its service may call that upstream. A change of one upstream is one change of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xds.control.changes import Changes, ResourcesByType, differences
from xds.control.upstreams import EncodedUpstream, UpstreamCatalog
from xds.envoy.extensions import OUTBOUND, ExtensionError, Extensions
from xds.envoy.resource import CLUSTER, ENDPOINT, SCOPED_ROUTE, Resource
from xds.mesh.config_entries import Extension, UpstreamSettings
from xds.mesh.facts import VirtualAddress
from xds.policy.mesh_wide_settings import MeshWideSettings

NOTHING = EncodedUpstream(known=True)


class UpstreamTable:
    """Upstreams that are called with the same settings and the same extensions of the caller's."""

    def __init__(
        self,
        catalog: UpstreamCatalog,
        mesh_wide: MeshWideSettings,
        settings: UpstreamSettings,
        extensions: tuple[Extension, ...],
    ) -> None:
        self.settings = settings
        self.resources: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}, SCOPED_ROUTE: {}}
        self.owners: dict[str, dict[str, str]] = {CLUSTER: {}, ENDPOINT: {}, SCOPED_ROUTE: {}}
        """Upstream that a resource belongs to, by type and name."""
        self.encoded: dict[str, EncodedUpstream] = {}
        self.unknown: set[str] = set()
        """Upstreams that have not been read yet."""
        self.listed: dict[VirtualAddress, tuple[str, str]] = {}
        """Addresses that an outbound listener has to list, each with the protocol and the upstream."""
        self.with_hosts: set[str] = set()
        """Upstreams that stand for hosts outside the mesh."""
        self.revision = 0
        """Number of changes of the set of resource names."""
        self.listing = 0
        """Number of changes of `listed`, or of what leads outside the mesh."""
        self.addresses = 0
        """Number of changes of the addresses of any upstream."""
        self._catalog = catalog
        self._mesh_wide = mesh_wide
        self._extensions = extensions

    def include(self, services: frozenset[str]) -> None:
        """Add these upstreams, unless they are in the table."""
        for service in services - self.encoded.keys():
            self.refresh(service)

    def forget(self, service: str) -> Changes:
        """Remove ``service``, which has no callers any more."""
        return self._replace(service, NOTHING) if service in self.encoded else {}

    def refresh(self, service: str) -> Changes:
        """Take the catalog's current encoding of ``service``. Return the names of the resources that differ."""
        return self._replace(service, self._patched(service, self._catalog.get(service, self.settings)))

    def _replace(self, service: str, encoded: EncodedUpstream) -> Changes:
        before = self.encoded.pop(service, NOTHING)
        if encoded is not NOTHING:
            self.encoded[service] = encoded
        changes = differences(before.resources, encoded.resources)
        for type_url, changed in changes.items():
            mine, owners = self.resources[type_url], self.owners[type_url]
            for name in changed:
                resource = encoded.resources.get(type_url, {}).get(name)
                if resource is not None:
                    self.revision += name not in mine
                    mine[name] = resource
                    owners[name] = service
                elif owners.get(name) == service:  # an address may belong to another service now
                    self.revision += 1
                    del mine[name], owners[name]
        if encoded.known:
            self.unknown.discard(service)
        else:
            self.unknown.add(service)
        if before.dialed != encoded.dialed:
            self._list(service, before, encoded)
        if before.hosts != encoded.hosts or before.egress != encoded.egress:
            self.listing += 1
            if encoded.hosts:
                self.with_hosts.add(service)
            else:
                self.with_hosts.discard(service)
        return changes

    def _list(self, service: str, before: EncodedUpstream, encoded: EncodedUpstream) -> None:
        self.addresses += 1
        now: dict[VirtualAddress, tuple[str, str] | None] = {}
        for at in before.dialed.keys() - encoded.dialed.keys():
            if self.listed.get(at, ("", service))[1] == service:  # otherwise it belongs to another service now
                now[at] = None
        for at, protocol in encoded.dialed.items():
            now[at] = (protocol, service) if self._mesh_wide.lists(at, protocol) else None
        for at, entry in now.items():
            if self.listed.get(at) != entry:
                self.listing += 1
                if entry is None:
                    del self.listed[at]
                else:
                    self.listed[at] = entry

    def _patched(self, service: str, encoded: EncodedUpstream) -> EncodedUpstream:
        """Return an upstream with the extensions of its caller applied."""
        if not self._extensions:
            return encoded
        try:
            extensions = Extensions(self._extensions)
            if not extensions.patches_upstreams:
                return encoded

            def patched(made: ResourcesByType) -> ResourcesByType:
                return {
                    type_url: {name: extensions.patched(each, OUTBOUND, service) for name, each in by_name.items()}
                    for type_url, by_name in made.items()
                }

            return replace(encoded, resources=patched(encoded.resources), egress=patched(encoded.egress))
        except (ExtensionError, ValueError, TypeError, KeyError) as error:
            # The sidecar itself reports extensions that can't be applied. A patch that does not fit changes nothing.
            return replace(encoded, problems=(*encoded.problems, str(error)))

    def names_of(self, services: Iterable[str]) -> Changes:
        """Return the names of all resources of these upstreams."""
        names: Changes = {}
        for service in services:
            encoded = self.encoded.get(service)
            if encoded is not None:
                for type_url, by_name in encoded.resources.items():
                    names.setdefault(type_url, set()).update(by_name)
        return names

    def names_of_all_but(self, services: Iterable[str]) -> Changes:
        """Return the names of all resources of all other upstreams; quick where these are few."""
        without = self.names_of(services)
        return {type_url: by_name.keys() - without.get(type_url, ()) for type_url, by_name in self.resources.items()}
