"""Upstreams as they are called with one kind of settings: a table that everybody who calls them so shares.

A thousand services that call ten thousand in the same way differ only in whom they may call. So what the upstreams
contribute stands here once, with whose each resource is, and a `ServiceView` asks only whether its service may call
that one. A change of one upstream is a change here, told to those who may call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xds.control.upstreams import EncodedUpstream, UpstreamCatalog
from xds.envoy.extensions import OUTBOUND, ExtensionError, Extensions
from xds.envoy.resource import CLUSTER, ENDPOINT, SCOPED_ROUTE, Resource
from xds.mesh.facts import VirtualAddress
from xds.mesh.settings import Extension, UpstreamSettings
from xds.policy.operator import OperatorSettings

ResourcesByType = Mapping[str, Mapping[str, Resource]]
Changes = dict[str, set[str]]
"""Names of resources that differ, by type."""
NOTHING = EncodedUpstream(known=True)


def differences(before: ResourcesByType, after: ResourcesByType) -> Changes:
    """Return the names whose resource was added, changed or removed."""
    changes: Changes = {}
    for type_url in before.keys() | after.keys():
        old, new = before.get(type_url, {}), after.get(type_url, {})
        changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if changed:
            changes[type_url] = changed
    return changes


def merge(into: Changes, more: Changes) -> None:
    """Add the names of ``more`` to ``into``."""
    for type_url, changed in more.items():
        into.setdefault(type_url, set()).update(changed)


class UpstreamTable:
    """Upstreams that are called with the same settings and the same extensions of the caller's."""

    def __init__(
        self,
        catalog: UpstreamCatalog,
        outbound: OperatorSettings,
        settings: UpstreamSettings,
        extensions: tuple[Extension, ...],
    ) -> None:
        self.settings = settings
        self.resources: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}, SCOPED_ROUTE: {}}
        self.owners: dict[str, dict[str, str]] = {CLUSTER: {}, ENDPOINT: {}, SCOPED_ROUTE: {}}
        """Upstream that a resource belongs to, by type and name."""
        self.encoded: dict[str, EncodedUpstream] = {}
        self.unknown: set[str] = set()
        """The upstreams that have not been read yet."""
        self.listed: dict[VirtualAddress, tuple[str, str]] = {}
        """The addresses that an outbound listener has to be told of: the protocol, and the upstream."""
        self.with_hosts: set[str] = set()
        """The upstreams that stand for hosts outside the mesh."""
        self.revision = 0
        """Moves whenever a name comes or goes."""
        self.listing = 0
        """Moves whenever `listed`, or what leads outside the mesh, differs."""
        self.addresses = 0
        """Moves whenever the addresses of an upstream differ."""
        self._catalog = catalog
        self._outbound = outbound
        self._extensions = extensions

    def hold(self, services: frozenset[str]) -> None:
        """See that these are in it."""
        for service in services - self.encoded.keys():
            self.refresh(service)

    def forget(self, service: str) -> Changes:
        """Nobody calls ``service`` any more."""
        return self._take(service, NOTHING) if service in self.encoded else {}

    def refresh(self, service: str) -> Changes:
        """Take over the catalog's current encoding of ``service``; the names of the resources that differ by it."""
        return self._take(service, self._patched(service, self._catalog.get(service, self.settings)))

    def _take(self, service: str, encoded: EncodedUpstream) -> Changes:
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
                elif owners.get(name) == service:  # an address that changed hands is its new owner's
                    self.revision += 1
                    del mine[name], owners[name]
        (self.unknown.discard if encoded.known else self.unknown.add)(service)
        if before.dialed != encoded.dialed:
            self._list(service, before, encoded)
        if before.hosts != encoded.hosts or before.egress != encoded.egress:
            self.listing += 1
            (self.with_hosts.add if encoded.hosts else self.with_hosts.discard)(service)
        return changes

    def _list(self, service: str, before: EncodedUpstream, encoded: EncodedUpstream) -> None:
        self.addresses += 1
        now: dict[VirtualAddress, tuple[str, str] | None] = {}
        for at in before.dialed.keys() - encoded.dialed.keys():
            if self.listed.get(at, ("", service))[1] == service:  # else it is its new owner's
                now[at] = None
        for at, protocol in encoded.dialed.items():
            now[at] = (protocol, service) if self._outbound.lists(at, protocol) else None
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
            # That it can't be applied is told for the sidecar itself; a patch that fits no more leaves things be.
            return replace(encoded, problems=(*encoded.problems, str(error)))

    def names_of(self, services: Iterable[str]) -> Changes:
        """Return the names of all resources of these upstreams."""
        names: Changes = {}
        for service in services:
            encoded = self.encoded.get(service)
            for type_url, by_name in encoded.resources.items() if encoded is not None else ():
                names.setdefault(type_url, set()).update(by_name)
        return names

    def names_of_all_but(self, services: Iterable[str]) -> Changes:
        """Return the names of all resources of all other upstreams; quick where these are few."""
        without = self.names_of(services)
        return {type_url: by_name.keys() - without.get(type_url, ()) for type_url, by_name in self.resources.items()}
