"""Derives what a pod is registered as in Consul: its service, its sidecar, and the check of each. Pure.

IDs, meta, tags, the node and the check are those of Consul on Kubernetes ("The two registrations"), so that a mesh can
move from it and back. A pod that can't be registered has a problem, which says what to change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xds.kubernetes import annotations as known
from xds.kubernetes import probes
from xds.kubernetes.containers import NODE_SUFFIX, SIDECAR_NAME
from xds.kubernetes.injection import ENABLED, EXPOSED_PATHS, INJECTED, MANAGER
from xds.kubernetes.probes import ExposedPath
from xds.kubernetes.settings import PUBLIC_PORT
from xds.kubernetes.values import parse_port
from xds.mesh.addresses import is_ip
from xds.mesh.names import CONNECT_PROXY, SIDECAR_SUFFIX

IGNORE_LABEL = known.PREFIX + "service-ignore"
"""Label of a Kubernetes Service whose pods are not registered for it."""
MANAGED_BY, SYNTHETIC_NODE = "managed-by", "synthetic-node"
CLUSTER = "gossamer-cluster"
"""Meta with the mark of the Kubernetes that registers a service."""
POD, NAMESPACE, UID = "pod-name", "k8s-namespace", "pod-uid"
CHECK_TYPE, CHECK_NAME = "kubernetes-readiness", "Kubernetes Readiness Check"


@dataclass(frozen=True, slots=True)
class Entry:
    """One service of a node in Consul, as it is registered."""

    node: str
    service_id: str
    body: str
    """Body of the request that registers it, JSON with sorted keys."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Registration of a pod: its entries, or the problem that leaves it without."""

    entries: tuple[Entry, ...] = ()
    problem: str = ""
    name: str = ""
    """Name of the service in Consul."""
    service: str = ""
    """Name of the Kubernetes Service."""
    since: str = ""
    """Time at which that was created, ISO 8601."""


def is_managed(pod: Any) -> bool:
    """Return whether a pod has a sidecar of Gossamer, so that Gossamer registers it."""
    metadata = pod.metadata
    injected = (metadata.annotations or {}).get(known.INJECT_STATUS) == INJECTED
    return injected and (metadata.labels or {}).get(known.MANAGED_BY) == MANAGER


def selects(service: Any, pod: Any) -> bool:
    """Return whether a Kubernetes Service selects a pod of its namespace, and registers it."""
    selector, labels = service.spec.selector or {}, pod.metadata.labels or {}
    if (service.metadata.labels or {}).get(IGNORE_LABEL, "false").lower() not in ("", "false"):
        return False
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def register(
    pod: Any,
    services: Iterable[Any],
    ready: Mapping[str, bool],
    *,
    legacy: bool = False,
    acls: bool = False,
    cluster: str = "",
) -> Outcome:
    """Return the registration of a pod.

    Args:
        pod: with a sidecar of Gossamer.
        services: the Kubernetes Services of its namespace.
        ready: whether its address is ready, by each Service whose EndpointSlices have it.
        acls: whether pods log in, and so can be the service of their ServiceAccount's name only.
        cluster: mark of this Kubernetes, so that several can register in one Consul.
        legacy: whether Consul is older than 1.10, which refuses ``Mode``; the mode is in the opaque configuration then.
    """
    annotations = pod.metadata.annotations or {}
    status = pod.status
    if not pod.spec.nodeName or not status or not status.podIP or not status.hostIP:
        return Outcome()  # it is not scheduled yet
    try:
        given = known.read(annotations, _named_ports(pod))
    except known.AnnotationError as error:
        return Outcome(problem=str(error))
    chosen = given.get(known.KUBERNETES_SERVICE)
    selecting = sorted((each for each in services if selects(each, pod)), key=lambda each: each.metadata.name)
    if chosen is not None:
        selecting = [each for each in selecting if each.metadata.name == chosen]
    if not selecting:
        return Outcome(problem=_no_service(pod, chosen))
    if len(selecting) > 1:
        names = ", ".join(each.metadata.name for each in selecting)
        return Outcome(
            problem=f"the Services {names} select this pod, which has one sidecar: name one in the annotation"
            f" {known.KUBERNETES_SERVICE.key}, or give the others the label {IGNORE_LABEL}"
        )
    [service] = selecting
    if service.metadata.name not in ready:
        return Outcome()  # Kubernetes has not listed its address yet
    name = given.get(known.SERVICE, service.metadata.name)
    account = pod.spec.serviceAccountName or "default"
    if acls and account != name:
        return Outcome(
            problem=f"the ServiceAccount {account!r} can't be the service {name!r}: with ACLs, a pod logs in as the"
            f" service of its ServiceAccount's name. Run it with a ServiceAccount named {name!r}"
        )
    port = _port(pod, given)
    virtual, problem = _virtual(service, pod, port)
    if problem:
        return Outcome(problem=problem)
    try:
        paths = probes.parse(annotations.get(EXPOSED_PATHS) or "[]")
    except ValueError:
        return Outcome(problem=f"annotation {EXPOSED_PATHS} is not what the webhook writes: create the pod again")
    passing = ready[service.metadata.name]
    entries = _entries(pod, service, given, port, virtual, paths, passing=passing, legacy=legacy, cluster=cluster)
    created = service.metadata.creationTimestamp
    return Outcome(entries, name=name, service=service.metadata.name, since=created.isoformat() if created else "")


def _no_service(pod: Any, chosen: str | None) -> str:
    if chosen is not None:
        return (
            f"no Service {chosen!r} of namespace {pod.metadata.namespace} selects this pod, although the annotation"
            f" {known.KUBERNETES_SERVICE.key} names it"
        )
    return (
        f"no Service of namespace {pod.metadata.namespace} selects this pod, so it has no name in the mesh: create a"
        " Service whose selector matches its labels"
    )


def _own_containers(pod: Any) -> list[Any]:
    return [each for each in pod.spec.containers or () if each.name != SIDECAR_NAME]


def _named_ports(pod: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for container in _own_containers(pod):
        for port in container.ports or ():
            if port.name:
                found.setdefault(port.name, port.containerPort)
    return found


def _port(pod: Any, given: Mapping[known.Annotation, Any]) -> int:
    """Return the application's port: that of the annotation, else the first one of the first container."""
    ports = given.get(known.SERVICE_PORT)
    if ports:
        return int(ports[0])
    for container in _own_containers(pod):
        for port in container.ports or ():
            return int(port.containerPort)
    return 0


def _virtual(service: Any, pod: Any, port: int) -> tuple[dict[str, Any], str]:
    """Return the virtual address that a Service's ClusterIP makes, and a problem of its ports."""
    address = service.spec.clusterIP or ""
    if not is_ip(address):
        return {}, ""  # headless
    named = _named_ports(pod)
    ports = service.spec.ports or ()
    targets: list[tuple[int, int]] = []
    for each in ports:
        target = each.targetPort if each.targetPort not in (None, 0, "") else each.port
        try:
            targets.append((parse_port(str(target), named), each.port))
        except ValueError:
            return {}, (
                f"port {each.port} of the Service {service.metadata.name} has the targetPort {target!r}, which no"
                " container of this pod has: name the container's port, or correct the Service"
            )
    number = next((of_service for target, of_service in targets if target == port), None)
    if number is None:
        number = next((of_service for _, of_service in targets if of_service == port), 0)
    return {"virtual": {"Address": address, "Port": number}}, ""


def _entries(
    pod: Any,
    service: Any,
    given: Mapping[known.Annotation, Any],
    port: int,
    virtual: dict[str, Any],
    paths: list[ExposedPath],
    *,
    passing: bool,
    legacy: bool,
    cluster: str,
) -> tuple[Entry, ...]:
    metadata, annotations = pod.metadata, pod.metadata.annotations or {}
    name = given.get(known.SERVICE, service.metadata.name)
    service_id = f"{metadata.name}-{name}"
    common: dict[str, Any] = {
        "Address": pod.status.podIP,
        "Meta": {
            **known.meta(annotations, metadata.name),
            POD: metadata.name,
            NAMESPACE: metadata.namespace,
            UID: metadata.uid,
            "k8s-service-name": service.metadata.name,
            MANAGED_BY: MANAGER,
            SYNTHETIC_NODE: "true",
            CLUSTER: cluster,
        },
        "Tags": [metadata.name if tag == known.POD_NAME else tag for tag in given.get(known.TAGS_OF_SERVICE, ())],
        "TaggedAddresses": virtual,
    }
    proxy: dict[str, Any] = {
        "DestinationServiceName": name,
        "DestinationServiceID": service_id,
        "Config": {},
        "Upstreams": [each.registered() for each in given.get(known.SERVICE_UPSTREAMS, ())],
    }
    if port:
        proxy |= {"LocalServiceAddress": "127.0.0.1", "LocalServicePort": port}
    if annotations.get(known.TRANSPARENT_STATUS) == ENABLED:
        if legacy:
            proxy["Config"]["mode"] = "transparent"
        else:
            proxy["Mode"] = "transparent"
    if paths:
        proxy["Expose"] = {"Paths": [path.registered() for path in paths]}
    sidecar = {"Kind": CONNECT_PROXY, "Port": PUBLIC_PORT, "Proxy": proxy, **common}
    return (
        _entry(pod, {"ID": service_id, "Service": name, "Port": port, **common}, passing=passing),
        _entry(
            pod,
            {"ID": service_id + SIDECAR_SUFFIX, "Service": name + SIDECAR_SUFFIX, **sidecar},
            passing=passing,
        ),
    )


def _entry(pod: Any, service: dict[str, Any], *, passing: bool) -> Entry:
    metadata, node = pod.metadata, pod.spec.nodeName + NODE_SUFFIX
    output = (
        "Kubernetes health checks passing" if passing else f'Pod "{metadata.namespace}/{metadata.name}" is not ready'
    )
    body = {
        "Node": node,
        "Address": pod.status.hostIP,
        "NodeMeta": {SYNTHETIC_NODE: "true"},
        "SkipNodeUpdate": True,
        "Service": service,
        "Check": {
            "Node": node,
            "CheckID": f"{metadata.namespace}/{service['ID']}",
            "Name": CHECK_NAME,
            "Type": CHECK_TYPE,
            "Status": "passing" if passing else "critical",
            "ServiceID": service["ID"],
            "Output": output,
        },
    }
    return Entry(node, service["ID"], json.dumps(body, sort_keys=True))
