"""Writes a mesh file from a running Consul."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import yaml

from xds.mesh.addresses import is_ip
from xds.mesh.names import usable_name
from xds.policy.upstreams import CONSUL
from xds.sources import decode
from xds.sources.consul.client import Consul, ConsulError, Reply
from xds.sources.consul.config_entry_watches import ALL, read_all
from xds.sources.consul.settings import ConsulSettings
from xds.sources.file.document import RefusedError, parse
from xds.sources.file.models import VIRTUAL_TAGS, Proxy, ServiceIntentions, SourceIntention, Upstream

INSTANCES_AT_ONCE = 8
WITH_SECRETS = ("inline-certificate", "file-system-certificate")
BOOKKEEPING = {"CreateIndex", "ModifyIndex", "Hash", "Namespace", "Partition", "Status"}


async def export(settings: ConsulSettings) -> tuple[dict[str, Any], list[str]]:
    """Return the mesh of a Consul as a mesh file's data, and what could not be exported.

    Raises:
        ConsulError: Consul can't be read.
    """
    consul = Consul(settings)
    try:
        names = (await _whole(consul, "/v1/catalog/services")).data
        entries = await read_all(consul, ALL, whole=True)
        intentions = (await _whole(consul, "/v1/connect/intentions")).data
        wanted = sorted(name for name in names if name != CONSUL and usable_name(name))
        about = await _agent(consul)
        reading = asyncio.Semaphore(INSTANCES_AT_ONCE)

        async def instances(name: str) -> list[Any]:
            async with reading:
                return list((await _whole(consul, f"/v1/health/service/{name}")).data or ())

        found = [entry for entries in await asyncio.gather(*map(instances, wanted)) for entry in entries]
    finally:
        await consul.close()
    return document(about, found, entries, intentions or ())


async def _whole(consul: Consul, path: str) -> Reply:
    """Return a complete answer: a mesh without some of its intentions would let in callers that they keep out."""
    reply = await consul.read(path)
    if reply.filtered:
        raise ConsulError(f"the token may not see all of {path}: it needs what 'gossamer serve' needs", 403)
    return reply


async def _agent(consul: Consul) -> Any:
    try:
        return await consul.awaited(consul.agent.self())
    except ConsulError as error:
        if not error.forbidden:
            raise
        return None


def document(
    agent: Any, instances: Iterable[Any], entries: Collection[Any], intentions: Iterable[Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return a mesh file's data from Consul's answers, and what could not be exported.

    Args:
        agent: ``/v1/agent/self``, ``None`` where it may not be read.
        instances: of ``/v1/health/service/:service`` for every service.
        entries: every config entry.
        intentions: ``/v1/connect/intentions``; a Consul before 1.9 has them nowhere else.
    """
    left_out: list[str] = []
    datacenter, default = "dc1", "deny"
    if agent is None:
        left_out.append("the agent's description may not be read (agent:read): datacenter dc1 and deny are guesses")
    else:
        datacenter = agent["Config"]["Datacenter"]
        default = "allow" if decode.agent_default_allow(agent) else "deny"
    bootstrap = [_entry(entry) for entry in entries if entry["Kind"] not in WITH_SECRETS]
    left_out += [
        f"{entry['Kind']} {entry.get('Name')!r}: it holds a private key"
        for entry in entries
        if entry["Kind"] in WITH_SECRETS
    ]
    if not any(entry["Kind"] == "service-intentions" for entry in bootstrap):
        bootstrap += _legacy_intentions(intentions)
    data = {
        "datacenter": datacenter,
        "default_intention_policy": default,
        "services": _services(list(instances), left_out),
        "config_entries": {"bootstrap": bootstrap},
    }
    try:
        parse("the file", yaml.safe_dump(data, sort_keys=False))
    except RefusedError as error:
        left_out += [f"has to be put right by hand: {problem.reason}" for problem in error.problems]
    return data, left_out


def _services(instances: list[Any], left_out: list[str]) -> list[Any]:
    """Yield the services. Consul's IDs belong to a node, a mesh file's do not: an ID that several nodes use gets the
    node's name."""
    uses = Counter(entry["Service"]["ID"] for entry in instances)
    services = []
    for entry in sorted(instances, key=lambda entry: (entry["Service"]["Service"], entry["Node"]["Node"])):
        node, registered = entry["Node"], entry["Service"]
        own_id = registered["ID"]
        address = registered.get("Address") or node["Address"]
        if not is_ip(address):
            left_out.append(f"{own_id!r} on node {node['Node']!r}: its address {address!r} is not an IP address")
            continue

        def unique(service_id: str, on: str = node["Node"]) -> str:
            return f"{service_id}-{on}" if uses[service_id] > 1 else service_id

        if uses[own_id] > 1:
            left_out.append(f"several nodes have a service with ID {own_id!r}: here it is {unique(own_id)!r}")
        service = service_definition(registered, address)
        service["id"] = unique(own_id)
        proxy = service.get("proxy", {})
        if proxy.get("destination_service_id"):
            proxy["destination_service_id"] = unique(proxy["destination_service_id"])
        statuses = {check.get("Status") for check in entry.get("Checks") or ()}
        for status in ("critical", "warning"):
            if status in statuses:
                service["checks"] = [{"name": "as exported", "ttl": "24h", "status": status}]
                break
        services.append(service)
    return services


def service_definition(registered: Any, address: str) -> dict[str, Any]:
    """Return a service at ``address`` as ``consul services register`` takes it, from Consul's JSON."""
    weights = registered.get("Weights") or {}
    tagged = registered.get("TaggedAddresses") or {}
    found: dict[str, Any] = {
        "name": registered["Service"],
        "id": registered["ID"],
        "kind": registered.get("Kind") or "",
        "address": address,
        "port": registered.get("Port") or 0,
        "tags": registered.get("Tags") or [],
        "meta": registered.get("Meta") or {},
        "enable_tag_override": bool(registered.get("EnableTagOverride")),
        "socket_path": registered.get("SocketPath") or "",
        "tagged_addresses": {
            tag: {"address": each["Address"], "port": each.get("Port") or 0}
            for tag, each in tagged.items()
            if tag in VIRTUAL_TAGS
        },
        "connect": {"native": True} if (registered.get("Connect") or {}).get("Native") else {},
    }
    if (weights.get("Passing", 1), weights.get("Warning", 1)) != (1, 1):
        found["weights"] = {"passing": weights.get("Passing", 1), "warning": weights.get("Warning", 1)}
    if registered.get("Kind"):
        found["proxy"] = _proxy(registered.get("Proxy") or {})
    return {key: value for key, value in found.items() if value not in ("", 0, False, {}, [])}


def _proxy(proxy: Any) -> dict[str, Any]:
    found = _snake(proxy, Proxy.model_fields)
    found["upstreams"] = [
        _snake(upstream, Upstream.model_fields)
        for upstream in proxy.get("Upstreams") or ()
        if not upstream.get("CentrallyConfigured")
    ]
    exposed = proxy.get("Expose") or {}
    paths = [
        _snake(path, ("path", "listener_port", "local_path_port", "protocol")) for path in exposed.get("Paths") or ()
    ]
    found["expose"] = {**_snake(exposed, ("checks",)), **({"paths": paths} if paths else {})}
    transparent = proxy.get("TransparentProxy") or {}
    found["transparent_proxy"] = _snake(transparent, ("outbound_listener_port", "dialed_directly"))
    return {key: value for key, value in found.items() if value not in ("", 0, {}, [], None)}


def _snake(data: Any, fields: Iterable[str]) -> dict[str, Any]:
    """Return those of ``fields`` that ``data`` has in camel case, under their own spelling."""
    spelled = {_camel(field): field for field in fields}
    return {spelled[key]: value for key, value in data.items() if key in spelled and value not in (None, "", 0, False)}


def _camel(field: str) -> str:
    return re.sub(r"(?:^|_)(id$|[a-z])", lambda part: part[1].upper(), field)


def _entry(entry: Any) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in BOOKKEEPING and value not in (None, "", {}, [])}
    if kept["Kind"] == "mesh":
        kept.pop("Name", None)
    if kept["Kind"] == "service-intentions":
        kept = {key: value for key, value in kept.items() if key in ServiceIntentions.model_fields}
        kept["Sources"] = [_source(source) for source in kept.get("Sources") or ()]
    return kept


def _source(source: Any) -> dict[str, Any]:
    wanted = SourceIntention.model_fields.keys() - {"Precedence", "Type"}
    return {key: value for key, value in source.items() if key in wanted and value}


def _legacy_intentions(intentions: Iterable[Any]) -> list[dict[str, Any]]:
    by_destination: dict[str, list[Any]] = {}
    for intention in intentions:
        about = {"Name": intention["SourceName"], "Action": intention["Action"]}
        by_destination.setdefault(intention["DestinationName"], []).append(about)
    return [
        {"Kind": "service-intentions", "Name": destination, "Sources": sources}
        for destination, sources in sorted(by_destination.items())
    ]
