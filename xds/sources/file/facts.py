"""A mesh file into the facts of a mesh. Pure.

What the file registers goes through the decoder that reads Consul's answers, so that a file means here what it means
on a Consul.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xds.mesh.facts import WILDCARD, ConfigEntries, DiscoveryChain, Intention, ServiceInstances
from xds.policy.intentions import IntentionIndex, connection_policy
from xds.policy.virtual_ips import claims
from xds.sources import decode
from xds.sources.file.document import Document
from xds.sources.file.models import (
    MeshFile,
    OtherEntry,
    ServiceDefaults,
    ServiceIntentions,
    ServiceResolver,
)
from xds.sources.file.registered import CONNECT_PROXY, NODE, Registered, registered

ROUTING = ("DefaultSubset", "Subsets", "Redirect", "Failover", "LoadBalancer", "RequestTimeout")
CHAIN_KINDS = ("service-router", "service-splitter")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Everything that a mesh file says, but for virtual IPs that it leaves to be given and certificates."""

    datacenter: str
    default_allow: bool
    intentions: tuple[Intention, ...]
    service_names: frozenset[str]
    entries: ConfigEntries
    instances: Mapping[str, ServiceInstances]
    chains: Mapping[str, DiscoveryChain]
    tokens: Mapping[str, frozenset[str]]
    """By each service in the mesh, the tokens that may have its certificate."""

    @property
    def declares_tokens(self) -> bool:
        """Whether a certificate needs a token at all."""
        return any(self.tokens.values())

    def without_virtual_ip(self) -> list[str]:
        """The services in the mesh for which the file names no virtual IP, in its order."""
        return [service for service in self.instances if not self.claimed(service)]

    def claimed(self, service: str) -> tuple[str, ...]:
        """The virtual IPs that the file names for a service."""
        return tuple(claims(self.instances[service], None).since) if service in self.instances else ()

    def callers(self, service: str) -> str:
        """Who may call a service, in words: names, or everybody but some."""
        decisions = IntentionIndex(self.intentions).to_destination(service)
        policy = connection_policy(decisions, default_allow=self.default_allow)
        names = ", ".join(policy.exceptions)
        if policy.others_permitted:
            return f"everybody but {names}" if names else "everybody"
        return names or "nobody"


def facts_of(document: Document) -> FileFacts:
    """The facts that a document states."""
    mesh = document.mesh
    services = registered(mesh)
    instances: dict[str, list[Any]] = {}
    tokens: dict[str, set[str]] = {}
    for index, service in enumerate(services, start=1):
        if service.destination is not None:
            instances.setdefault(service.destination, []).append(_health_entry(service, index))
            tokens.setdefault(service.destination, set()).update([service.token] if service.token else [])
    found = {name: decode.service_instances(name, entries) for name, entries in instances.items()}
    return FileFacts(
        datacenter=mesh.datacenter,
        default_allow=mesh.default_intention_policy == "allow",
        intentions=decode.intentions(list(_intentions(mesh))),
        service_names=frozenset(service.name for service in services if not service.kind) | found.keys(),
        entries=decode.config_entries([entry.model_dump() for entry in mesh.config_entries.bootstrap]),
        instances=found,
        chains={chain.service: chain for chain in _chains(mesh)},
        tokens={name: frozenset(each) for name, each in tokens.items()},
    )


def _health_entry(service: Registered, index: int) -> Any:
    return {
        "Node": {"Node": NODE, "Address": service.address},
        "Service": {**service.as_json(), "CreateIndex": index},
        "Checks": [{"Status": check.status} for check in service.checks],
    }


def _intentions(mesh: MeshFile) -> Iterator[Any]:
    for entry in mesh.config_entries.bootstrap:
        if isinstance(entry, ServiceIntentions):
            for source in entry.Sources:
                yield {
                    "SourceName": source.Name,
                    "SourceNS": source.Namespace,
                    "SourcePartition": source.Partition,
                    "SourcePeer": source.Peer,
                    "SourceSamenessGroup": source.SamenessGroup,
                    "DestinationName": entry.Name,
                    "DestinationNS": entry.Namespace,
                    "DestinationPartition": entry.Partition,
                    "Action": source.Action,
                    "Permissions": source.Permissions,
                    "JWT": entry.JWT,
                }


def _chains(mesh: MeshFile) -> Iterator[DiscoveryChain]:
    """What the file's entries say about reaching services; where they say nothing, a chain is Consul's default one."""
    refusals: dict[str, str] = {}
    timeouts: dict[str, int] = {}
    for entry in mesh.config_entries.bootstrap:
        if isinstance(entry, ServiceResolver):
            timeout = decode.milliseconds(entry.ConnectTimeout) if entry.ConnectTimeout else None
            if timeout:
                timeouts[entry.Name] = timeout
            more = sorted(field for field in ROUTING if getattr(entry, field))
            if more:
                refusals[entry.Name] = f"its service-resolver says {', '.join(more)}, which is not served yet"
        elif isinstance(entry, OtherEntry) and entry.Kind in CHAIN_KINDS:
            refusals[entry.Name] = f"its discovery chain starts with a {entry.Kind}, which is not served yet"
    for name in {**refusals, **timeouts}:
        timeout = min(timeouts.get(name, decode.DEFAULT_CONNECT_TIMEOUT_MS), decode.LARGEST)
        yield DiscoveryChain(name, (), timeout, refusals.get(name))


def warnings(document: Document, facts: FileFacts) -> list[tuple[int, str]]:
    """What is allowed and may still not be meant, each with its line; ``facts`` are those of ``document``."""
    mesh = document.mesh
    services = registered(mesh)
    found: list[tuple[int, str]] = []

    def warn(path: tuple[str | int, ...], text: str) -> None:
        found.append((document.line(path), text))

    for service in services:
        if service.kind not in ("", CONNECT_PROXY):
            warn((*service.path, "kind"), f"a {service.kind} is not served yet; {service.id!r} only has a name here")
        if service.destination is None and service.name not in facts.instances:
            warn(service.path, f"{service.name!r} has no sidecar, so nobody reaches it through the mesh")
        if service.destination is None and "virtual" in service.definition.tagged_addresses:
            warn(
                (*service.path, "tagged_addresses"),
                f"the virtual IP of {service.id!r} has no effect here: in Consul it is its sidecar's that counts",
            )
        for number, upstream in enumerate(service.proxy.upstreams):
            if upstream.destination_name not in facts.service_names:
                path = (*service.path, "proxy", "upstreams", number)
                warn(path, f"the upstream {upstream.destination_name!r} is no service of this file")
    for number, entry in enumerate(mesh.config_entries.bootstrap):
        path = ("config_entries", "bootstrap", number)
        if isinstance(entry, OtherEntry) and entry.Kind not in CHAIN_KINDS:
            warn(path, f"a {entry.Kind} is not followed yet")
        if isinstance(entry, ServiceIntentions):
            for index, source in enumerate(entry.Sources):
                if source.Name not in (*facts.service_names, WILDCARD):
                    warn((*path, "Sources", index), f"the intention's source {source.Name!r} is unknown here")
        named = getattr(entry, "Name", WILDCARD)
        if isinstance(entry, ServiceIntentions | ServiceDefaults) and named not in (*facts.service_names, WILDCARD):
            warn(path, f"the {entry.Kind} is for {named!r}, which is no service of this file")
    for refused in facts.chains.values():
        if refused.refusal:
            found.append((0, f"{refused.service!r} is set aside as an upstream: {refused.refusal}"))
    found += [(0, problem) for problem in facts.entries.problems]
    return sorted(found)
