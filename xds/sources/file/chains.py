"""Compiles the discovery chains of a mesh file, as ``/v1/discovery-chain/:service`` returns them for the same entries.

Rules (Consul, "Discovery chain"; what Consul 1.8 and 1.16 answer is compared with this in the tests):

* Only the router of the service itself counts, and it ends with a route of everything to the service.
* A splitter that leads to a splitter is flattened: the weights are multiplied.
* A resolver redirects, then uses its default subset, then fails over: as for that subset, otherwise as for ``*``. A
  target of failover follows redirects and default subsets of its own, and has no failover.
* Everything in a chain has one protocol; routers and splitters need one whose requests can be distinguished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.names import as_written
from xds.sources.file.models import (
    Entry,
    ProxyDefaults,
    ServiceDefaults,
    ServiceResolver,
    ServiceRouter,
    ServiceSplitter,
)

SPACE = "default.default"
"""Namespace and partition of the Community Edition."""


class CompileError(Exception):
    """Chain that does not compile; the message says why, with kind, entry and field."""


class Target(NamedTuple):
    """Set of instances of a service."""

    service: str
    subset: str
    datacenter: str
    peer: str = ""

    @property
    def id(self) -> str:
        """As Consul names it."""
        subset = f"{self.subset}." if self.subset else ""
        if self.peer:
            return f"{subset}{self.service}.{SPACE}.external.{self.peer}"
        return f"{subset}{self.service}.{SPACE}.{self.datacenter}"


@dataclass(frozen=True, slots=True)
class ChainEntries:
    """The entries that shape chains, by the service that they are named after."""

    routers: Mapping[str, ServiceRouter] = field(default_factory=dict)
    splitters: Mapping[str, ServiceSplitter] = field(default_factory=dict)
    resolvers: Mapping[str, ServiceResolver] = field(default_factory=dict)
    defaults: Mapping[str, ServiceDefaults] = field(default_factory=dict)
    proxy_defaults: ProxyDefaults | None = None
    spelled: Callable[[str], str] = as_written
    """Function that returns how the file spells a service, whatever an entry calls it."""

    @classmethod
    def of(cls, entries: Iterable[Entry], spelled: Callable[[str], str]) -> ChainEntries:
        """Return those among ``entries``; ``spelled`` returns how the file spells a service."""
        found = list(entries)
        return cls(
            {spelled(entry.Name): entry for entry in found if isinstance(entry, ServiceRouter)},
            {spelled(entry.Name): entry for entry in found if isinstance(entry, ServiceSplitter)},
            {spelled(entry.Name): entry for entry in found if isinstance(entry, ServiceResolver)},
            {spelled(entry.Name): entry for entry in found if isinstance(entry, ServiceDefaults)},
            next((entry for entry in found if isinstance(entry, ProxyDefaults)), None),
            spelled,
        )

    def protocol(self, service: str) -> str:
        """Return the protocol of a service: that of its service-defaults if there are any, otherwise of the
        proxy-defaults."""
        own = self.defaults.get(service)
        if own is not None:
            return own.Protocol.lower() or "tcp"
        given = self.proxy_defaults.Config.get("protocol") if self.proxy_defaults else None
        return str(given or "tcp").lower()


def compile_chain(service: str, entries: ChainEntries, datacenter: str) -> dict[str, Any]:
    """Return the chain of ``service`` in Consul's JSON, without virtual IPs.

    Raises:
        CompileError: the entries make none.
    """
    return _Compiler(service, entries, datacenter).compiled()


class _Compiler:
    """Compilation of one chain: the nodes and targets met so far."""

    def __init__(self, service: str, entries: ChainEntries, datacenter: str) -> None:
        self._service = service
        self._entries = entries
        self._datacenter = datacenter
        self._nodes: dict[str, dict[str, Any]] = {}
        self._targets: dict[str, dict[str, Any]] = {}
        self._protocol: tuple[str, str] | None = None
        """The protocol of the first service that was met, and that service."""
        self._splitting: list[str] = []
        """The splitters that are being followed."""

    def compiled(self) -> dict[str, Any]:
        router = self._entries.routers.get(self._service)
        start = self._router(router) if router else self._splitter_or_resolver(self._service)
        protocol = self._protocol[0] if self._protocol else "tcp"
        first = self._nodes[start]
        if first["Type"] != "resolver" and protocol not in HTTP_PROTOCOLS:
            raise CompileError(
                f"service-{first['Type']}/{self._service}: protocol {protocol!r} has no requests to divide;"
                f" its service-defaults may set {', '.join(HTTP_PROTOCOLS)}"
            )
        self._drop_unreached(start)
        return {
            "Chain": {
                "ServiceName": self._service,
                "Datacenter": self._datacenter,
                "Protocol": protocol,
                "StartNode": start,
                "Nodes": self._nodes,
                "Targets": self._targets,
            }
        }

    def _drop_unreached(self, start: str) -> None:
        """Drop the splitters that others were made of."""
        reached, todo = set(), [start]
        while todo:
            key = todo.pop()
            if key not in reached:
                reached.add(key)
                node = self._nodes[key]
                todo += [each["NextNode"] for each in (*node.get("Routes", ()), *node.get("Splits", ()))]
        self._nodes = {key: node for key, node in self._nodes.items() if key in reached}

    def _speaks(self, service: str) -> None:
        protocol = self._entries.protocol(service)
        if self._protocol is None:
            self._protocol = protocol, service
        elif self._protocol[0] != protocol:
            raise CompileError(
                f"the discovery chain of {self._service!r} mixes protocols: {self._protocol[1]!r} has"
                f" {self._protocol[0]!r}, {service!r} has {protocol!r}"
            )

    # -- routers and splitters ------------------------------------------------------------------------------------

    def _router(self, router: ServiceRouter) -> str:
        self._speaks(self._service)
        routes = []
        for route in router.Routes:
            destination = route.Destination
            service = self._entries.spelled(destination.Service if destination else "") or self._service
            subset = destination.ServiceSubset if destination else ""
            following = self._subset(service, subset) if subset else self._splitter_or_resolver(service)
            routes.append({"Definition": route.model_dump(exclude_none=True), "NextNode": following})
        everything = {"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"Service": self._service}}
        routes.append({"Definition": everything, "NextNode": self._splitter_or_resolver(self._service)})
        return self._record({"Type": "router", "Name": f"{self._service}.{SPACE}", "Routes": routes})

    def _splitter_or_resolver(self, service: str) -> str:
        splitter = self._entries.splitters.get(service)
        return self._splitter(splitter) if splitter else self._subset(service, "")

    def _splitter(self, splitter: ServiceSplitter) -> str:
        own = self._entries.spelled(splitter.Name)
        if own in self._splitting:
            way = " -> ".join([*self._splitting, own])
            raise CompileError(f"service-splitter/{own}: leads back to itself: {way}")
        self._splitting.append(own)
        splits: list[dict[str, Any]] = []
        balancer = None
        for split in splitter.Splits:
            service = self._entries.spelled(split.Service) or own
            further = self._entries.splitters.get(service) if service != own and not split.ServiceSubset else None
            definition = split.model_dump(exclude_none=True)
            if further is not None:
                inner = self._nodes[self._splitter(further)]
                splits += [_through(definition, split.Weight, each) for each in inner["Splits"]]
                continue
            following = self._subset(service, split.ServiceSubset)
            splits.append({"Definition": definition, "Weight": split.Weight, "NextNode": following})
            found = self._nodes[following].get("LoadBalancer") or {}
            if balancer is None and found.get("Policy") in ("ring_hash", "maglev"):
                balancer = found
        self._splitting.pop()
        node = {"Type": "splitter", "Name": f"{own}.{SPACE}", "Splits": splits}
        return self._record(node | ({"LoadBalancer": balancer} if balancer else {}))

    def _record(self, node: dict[str, Any]) -> str:
        key = f"{node['Type']}:{node['Name']}"
        self._nodes[key] = node
        return key

    # -- resolvers ------------------------------------------------------------------------------------------------

    def _subset(self, service: str, subset: str) -> str:
        return self._resolver(Target(service, subset, self._datacenter))

    def _resolver(self, wanted: Target) -> str:
        target = self._settled(wanted)
        key = f"resolver:{target.id}"
        if key in self._nodes:
            return key
        entry = self._entries.resolvers.get(target.service)
        resolver: dict[str, Any] = {"Target": target.id}
        if entry is not None and entry.RequestTimeout:
            resolver["RequestTimeout"] = entry.RequestTimeout
        node: dict[str, Any] = {"Type": "resolver", "Name": target.id, "Resolver": resolver}
        if entry is not None and entry.LoadBalancer is not None:
            node["LoadBalancer"] = entry.LoadBalancer.model_dump(exclude_none=True)
        self._keep(target)
        failover = [self._settled(each) for each in self._failover(entry, target)]
        for each in failover:
            self._keep(each)
        if failover:
            resolver["Failover"] = {"Targets": [each.id for each in failover]}
        return self._record(node)

    def _settled(self, wanted: Target) -> Target:
        """Return the target that redirects and default subsets lead to."""
        way = [wanted.id]
        target = wanted
        while True:
            if not target.peer:
                self._speaks(target.service)
            entry = None if target.peer else self._entries.resolvers.get(target.service)
            following = target
            if entry is not None and entry.Redirect is not None:
                to = entry.Redirect
                following = _rewritten(
                    target, self._entries.spelled(to.Service), to.ServiceSubset, to.Datacenter, to.Peer
                )
            if following == target and entry is not None and not target.subset and entry.DefaultSubset:
                following = target._replace(subset=entry.DefaultSubset)
            if following == target:
                break
            way.append(following.id)
            if following.id in way[:-1]:
                raise CompileError(f"service-resolver/{wanted.service}: redirects in a circle: {' -> '.join(way)}")
            target = following
        if target.subset and (entry is None or target.subset not in entry.Subsets):
            raise CompileError(f"service-resolver/{target.service}: there is no subset {target.subset!r}")
        return target

    def _failover(self, entry: ServiceResolver | None, target: Target) -> list[Target]:
        spelled = self._entries.spelled
        given = (entry.Failover.get(target.subset) or entry.Failover.get("*")) if entry is not None else None
        if given is None:
            return []
        if given.Datacenters:
            found = [
                _rewritten(target, spelled(given.Service), given.ServiceSubset, each, "") for each in given.Datacenters
            ]
        elif given.Targets:
            found = [
                _rewritten(target, spelled(each.Service), each.ServiceSubset, each.Datacenter, each.Peer)
                for each in given.Targets
            ]
        else:
            found = [_rewritten(target, spelled(given.Service), given.ServiceSubset, "", "")]
        return [each for each in found if each != target]

    def _keep(self, target: Target) -> None:
        entry = None if target.peer else self._entries.resolvers.get(target.service)
        defaults = self._entries.defaults.get(target.service)
        subset = entry.Subsets.get(target.subset) if entry is not None and target.subset else None
        found: dict[str, Any] = {
            "ID": target.id,
            "Service": target.service,
            "ServiceSubset": target.subset,
            "Datacenter": target.datacenter,
            "Peer": target.peer,
            "ConnectTimeout": (entry.ConnectTimeout if entry is not None else "") or "5s",
            "Subset": subset.model_dump() if subset is not None else {},
        }
        if defaults is not None and defaults.ExternalSNI:
            found |= {"External": True, "SNI": defaults.ExternalSNI}
            if entry is not None and (entry.Redirect or entry.Subsets or entry.Failover):
                raise CompileError(
                    f"service-resolver/{target.service}: a service with an ExternalSNI has no Redirect, Subsets or"
                    " Failover"
                )
        else:
            own = defaults.MeshGateway.Mode if defaults is not None else ""
            general = self._entries.proxy_defaults.MeshGateway.Mode if self._entries.proxy_defaults else ""
            found["MeshGateway"] = {"Mode": own or general}
        self._targets[target.id] = found


def _rewritten(target: Target, service: str, subset: str, datacenter: str, peer: str) -> Target:
    """Return ``target`` with these changes; a subset of another service is dropped."""
    if service and service != target.service:
        target = target._replace(service=service, subset="")
    return target._replace(
        subset=subset or target.subset,
        datacenter="" if peer else datacenter or target.datacenter,
        peer=peer,
    )


def _through(outer: dict[str, Any], weight: float, inner: dict[str, Any]) -> dict[str, Any]:
    """Return a split of an inner splitter as one of the outer: requests pass the outer first, responses last."""
    definition = dict(inner["Definition"])
    for name, first, then in (
        ("RequestHeaders", outer.get("RequestHeaders") or {}, definition.get("RequestHeaders") or {}),
        ("ResponseHeaders", definition.get("ResponseHeaders") or {}, outer.get("ResponseHeaders") or {}),
    ):
        merged = {change: {**(first.get(change) or {}), **(then.get(change) or {})} for change in ("Add", "Set")}
        removed = dict.fromkeys([*(first.get("Remove") or ()), *(then.get("Remove") or ())])
        if first or then:
            definition[name] = merged | {"Remove": list(removed)}
    share = math.floor(round(weight * inner["Weight"], 6) + 0.5) / 100  # halves up, as in Consul
    return {"Definition": definition, "Weight": share, "NextNode": inner["NextNode"]}
