"""Converts a mesh file into the facts of a mesh. Pure.

Its services go through the decoder of Consul's answers, so that a file has the same meaning as on a Consul.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xds.mesh.chains import DiscoveryChain, default_chain
from xds.mesh.config_entries import ConfigEntries
from xds.mesh.facts import Roots, ServiceInstances, Sidecar
from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.intentions import Action, Intention
from xds.mesh.mesh import (
    CONFIG_ENTRIES,
    DATACENTER,
    DEFAULT_ALLOW,
    INTENTIONS,
    ROOTS,
    SERVICE_NAMES,
    Key,
    Kind,
)
from xds.mesh.names import CONNECT_PROXY, WILDCARD, Spellings, fold
from xds.policy.intentions import (
    IntentionIndex,
    admission_problems,
    request_policy,
    token_checks,
)
from xds.policy.proxies import effective_settings
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.policy.virtual_ips import claims
from xds.sources import decode
from xds.sources.file.chains import ChainEntries, CompileError, compile_chain
from xds.sources.file.document import Document
from xds.sources.file.models import (
    MeshFile,
    OtherEntry,
    ServiceDefaults,
    ServiceIntentions,
    ServiceResolver,
    ServiceRouter,
    ServiceSplitter,
    TerminatingGateway,
)
from xds.sources.file.registered import NODE, Registered
from xds.sources.file.virtual_ips import Given


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Facts of a mesh file, except the virtual IPs that it leaves to be assigned, and certificates."""

    datacenter: str
    default_allow: bool
    intentions: tuple[Intention, ...]
    service_names: frozenset[str]
    entries: ConfigEntries
    instances: Mapping[str, ServiceInstances]
    chains: Mapping[str, DiscoveryChain]
    made: tuple[str, ...]
    """Services that a router, a splitter or a resolver names, with or without instances."""
    tokens: Mapping[str, frozenset[str]]
    """Tokens that may have the certificate of each service in the mesh."""

    def base(self, roots: Roots) -> dict[Key, object]:
        """Return the facts that are about the whole mesh (`xds.mesh.mesh.BASE_FACTS`)."""
        return {
            ROOTS: roots,
            INTENTIONS: self.intentions,
            DEFAULT_ALLOW: self.default_allow,
            DATACENTER: self.datacenter,
            SERVICE_NAMES: self.service_names,
            CONFIG_ENTRIES: self.entries,
        }

    def service(self, name: str, given: Given) -> dict[Key, object]:
        """Return the facts about one service; ``given`` are the virtual IPs of services that claim none."""
        chain = self.chains.get(name) or default_chain(name)
        if name in given.by_service and not self.claimed(name):
            chain = replace(chain, virtual_ips=(given.by_service[name],))
        instances = self.instances.get(name, ServiceInstances(name))
        return {Key(Kind.INSTANCES, name): instances, Key(Kind.CHAIN, name): chain}

    @property
    def declares_tokens(self) -> bool:
        """Whether a certificate needs a token at all."""
        return any(self.tokens.values())

    def without_virtual_ip(self) -> list[str]:
        """Return the services in the mesh for which the file names no virtual IP, in its order.

        Services that exist only because of a router, a splitter or a resolver are among them, after the others.
        """
        return [service for service in dict.fromkeys([*self.instances, *self.made]) if not self.claimed(service)]

    def claimed(self, service: str) -> tuple[str, ...]:
        """Return the virtual IPs that the file names for a service."""
        if service not in self.instances:
            return ()
        return tuple(dict.fromkeys(at.ip for at in claims(self.instances[service], None, ()).since))

    def protocols(self, service: str) -> set[str]:
        """Return the protocols of the sidecars of a service."""
        known = self.instances.get(service)
        if known is None:
            return set()
        different: list[Sidecar] = []
        for instance in known.instances:
            # Instances with the same text share one settings object, so most comparisons are quick.
            if instance.sidecar is not None and all(instance.sidecar.settings != each.settings for each in different):
                different.append(instance.sidecar)
        return {effective_settings(each, self.entries).protocol or "tcp" for each in different}

    def callers(self, service: str) -> str:
        """Return who may call a service, in words; "some requests" where that depends on what is requested."""
        decisions = IntentionIndex(self.intentions).to_destination(service, Spellings(self.service_names).of)
        sees_requests = not self.protocols(service).isdisjoint(HTTP_PROTOCOLS)

        def extent(intention: Intention | None) -> str:
            if intention is None:
                return "all" if self.default_allow else "none"
            if intention.action is Action.DENY or (intention.needs_requests and not sees_requests):
                return "none"
            return "some" if intention.needs_requests else "all"

        others = extent(decisions.otherwise)
        apart: dict[str, list[str]] = {"all": [], "some": [], "none": []}
        for name, intention in sorted(decisions.exact.items()):
            if extent(intention) != others:
                apart[extent(intention)].append(name)
        some = [f"{name} (some requests)" for name in apart["some"]]
        if others == "none":
            return ", ".join([*apart["all"], *some]) or "nobody"
        all_sources = "everybody" if others == "all" else "everybody (some requests)"
        denied = f" but {', '.join(apart['none'])}" if apart["none"] else ""
        return ", ".join([all_sources + denied, *apart["all"], *some])


def facts_of(document: Document, quotas: Quotas = DEFAULT_QUOTAS) -> FileFacts:
    """Return the facts of a document; ``quotas`` limit the configuration of one service."""
    mesh, services = document.mesh, document.services
    spelled = Spellings(*([each.destination or each.name] for each in services if each.destination or not each.kind)).of
    instances: dict[str, list[tuple[Registered, int]]] = {}
    tokens: dict[str, set[str]] = {}
    for index, service in enumerate(services, start=1):
        if service.destination is not None:
            instances.setdefault(spelled(service.destination), []).append((service, index))
            tokens.setdefault(spelled(service.destination), set()).update([service.token] if service.token else [])
    gateways = [entry for entry in mesh.config_entries.bootstrap if isinstance(entry, TerminatingGateway)]
    for gateway in gateways:
        for linked in gateway.Services:
            for index, service in enumerate(services, start=1):
                if service.kind == decode.TERMINATING_GATEWAY and fold(service.name) == fold(gateway.Name):
                    instances.setdefault(spelled(linked.Name), []).append((service, index))
                    tokens.setdefault(spelled(linked.Name), set()).update([service.token] if service.token else [])
    found = {
        name: decode.service_instances(
            name, [_health_entry(service, index) for service, index in each], assigning=decode.BY_FILE
        )
        for name, each in instances.items()
    }
    made = tuple(
        spelled(entry.Name)
        for entry in mesh.config_entries.bootstrap
        if isinstance(entry, ServiceRouter | ServiceSplitter | ServiceResolver)
    )
    return FileFacts(
        datacenter=mesh.datacenter,
        default_allow=mesh.default_intention_policy == "allow",
        intentions=decode.intentions(list(_intentions(mesh)), quotas),
        service_names=frozenset(spelled(service.name) for service in services if not service.kind) | found.keys(),
        entries=decode.config_entries([entry.model_dump() for entry in mesh.config_entries.bootstrap]),
        instances=found,
        chains={chain.service: chain for chain in _chains(mesh, {*instances, *made}, spelled, quotas)},
        made=made,
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
                    "Permissions": [each.model_dump() for each in source.Permissions],
                    "JWT": entry.JWT.model_dump(),
                }


def _chains(
    mesh: MeshFile, names: Iterable[str], spelled: Callable[[str], str], quotas: Quotas
) -> Iterator[DiscoveryChain]:
    """Return the chain of each of these services. One that does not compile is set aside alone."""
    entries = ChainEntries.of(mesh.config_entries.bootstrap, spelled)
    for name in names:
        try:
            yield decode.chain(name, compile_chain(name, entries, mesh.datacenter), quotas=quotas)
        except CompileError as error:
            yield DiscoveryChain(name, refusal=str(error))


def warnings(document: Document, facts: FileFacts) -> list[tuple[int, str]]:
    """Yield what is allowed and may still not be intended, each with its line; ``facts`` are those of ``document``."""
    mesh, services = document.mesh, document.services
    spelled = Spellings(facts.service_names).of
    known = {*facts.service_names, WILDCARD}
    found: list[tuple[int, str]] = []

    def warn(path: tuple[str | int, ...], text: str) -> None:
        found.append((document.lines.of(path), text))

    for service in services:
        if service.kind not in ("", CONNECT_PROXY, decode.TERMINATING_GATEWAY):
            warn((*service.path, "kind"), f"a {service.kind} is not served yet; {service.id!r} only has a name here")
        if service.destination is None and service.name not in facts.instances:
            warn(service.path, f"{service.name!r} has no sidecar, so it can't be reached through the mesh")
        if service.destination is None and "virtual" in service.definition.tagged_addresses:
            warn(
                (*service.path, "tagged_addresses"),
                f"the virtual IP of {service.id!r} has no effect here: in Consul it is its sidecar's that counts",
            )
        for number, upstream in enumerate(service.proxy.upstreams):
            if spelled(upstream.destination_name) not in facts.service_names:
                path = (*service.path, "proxy", "upstreams", number)
                warn(path, f"the upstream {upstream.destination_name!r} is no service of this file")
    for number, entry in enumerate(mesh.config_entries.bootstrap):
        path = ("config_entries", "bootstrap", number)
        if isinstance(entry, OtherEntry):
            warn(path, f"a {entry.Kind} is not followed yet")
        if isinstance(entry, ServiceIntentions):
            for index, source in enumerate(entry.Sources):
                if spelled(source.Name) not in known:
                    warn((*path, "Sources", index), f"the intention's source {source.Name!r} is unknown here")
        named = getattr(entry, "Name", WILDCARD)
        if isinstance(entry, ServiceIntentions | ServiceDefaults) and spelled(named) not in known:
            warn(path, f"the {entry.Kind} is for {named!r}, which is no service of this file")
    for name, chain in sorted(facts.chains.items()):
        if chain.refusal:
            found.append((0, f"{name!r} is set aside as an upstream: {chain.refusal}"))
        found += [(0, f"{name!r}: {problem}") for problem in chain.problems]
        for target in chain.targets.values():
            if not target.datacenter and target.service not in facts.instances:
                where = f"the discovery chain of {name!r} leads to {target.service!r}"
                found.append((0, f"{where}, which is not in the mesh"))
    all_intentions = IntentionIndex(facts.intentions)
    for destination in sorted(facts.instances):
        decisions = all_intentions.to_destination(destination, spelled)
        policy = request_policy(decisions, default_allow=facts.default_allow)
        missing = {check.provider for check in token_checks(policy)} - facts.entries.token_providers.keys()
        for protocol in facts.protocols(destination):
            found += [(0, problem) for problem in admission_problems(decisions, protocol, sorted(missing))]
    found += [(0, str(problem)) for problem in facts.entries.problems]
    return sorted(found)
