"""Decides whether a pod gets a sidecar, and adds it: pure functions from a pod to a pod.

The order of the decision and the names of labels and annotations are those of Consul on Kubernetes ("Webhook
contract"). A pod either gets everything or is refused with every problem of its annotations.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xds.kubernetes import annotations as known
from xds.kubernetes import probes
from xds.kubernetes.annotations import Annotation, AnnotationError
from xds.kubernetes.containers import INIT_NAME, SIDECAR_NAME, PodInputs, init_container, sidecar_container, volumes
from xds.kubernetes.probes import ExposedPath, ProbeError
from xds.kubernetes.settings import DNS_PORT, ENVOY_UID, INIT_UID, PUBLIC_PORT, InjectionSettings
from xds.outbound_port import OUTBOUND_LISTENER_PORT

MANAGER = "gossamer"
"""Value of the label that says who registers a pod. Consul on Kubernetes ignores pods with any value but its own."""
INJECTED, ENABLED = "injected", "enabled"
EXPOSED_PATHS = "gossamer.io/exposed-paths"
"""Annotation with the exposed paths of a pod's rewritten probes (JSON), for its registration."""
RESERVED_USERS = {ENVOY_UID: "the sidecar", INIT_UID: "the init container"}


class RefusedPodError(Exception):
    """Pod that can't get a sidecar as it is; the message names each problem and what was expected."""


@dataclass(frozen=True, slots=True)
class Injected:
    """Pod with a sidecar, and warnings for whoever created it."""

    pod: dict[str, Any]
    warnings: tuple[str, ...]


def wants_sidecar(pod: Mapping[str, Any], namespace: str, settings: InjectionSettings) -> bool:
    """Return whether a pod gets a sidecar.

    Raises:
        RefusedPodError: its annotation is not a boolean, or asks for a sidecar on the node's network.
    """
    annotations = _annotations(pod)
    if not settings.namespaces.serves(namespace) or annotations.get(known.INJECT_STATUS):
        return False
    given = annotations.get(known.INJECT.key)
    of_host = bool(pod["spec"].get("hostNetwork"))
    if given is None:
        return settings.inject and not of_host
    try:
        wanted = bool(known.INJECT.form.parse(given, {}))
    except ValueError:
        raise RefusedPodError(f"annotation {known.INJECT.key}: {given!r} is not {known.INJECT.form.expected}") from None
    if wanted and of_host:
        raise RefusedPodError("the pod uses its node's network, all of which would be redirected: remove hostNetwork")
    return wanted


def inject(pod: Mapping[str, Any], namespace_labels: Mapping[str, str], settings: InjectionSettings) -> Injected:
    """Return ``pod``, which is not changed, with a sidecar.

    Args:
        pod: as the API server sends it.
        namespace_labels: labels of its namespace.
        settings: the operator's.

    Raises:
        RefusedPodError: its annotations, users or ports can't be used.
    """
    made = copy.deepcopy(dict(pod))
    spec = made["spec"]
    annotations = _annotations(made)
    containers = [each for each in spec.get("containers") or () if each.get("name") != SIDECAR_NAME]
    ports = _named_ports(containers)
    try:
        given = known.read(annotations, ports, namespace_labels)
    except AnnotationError as error:
        raise RefusedPodError(str(error)) from None
    transparent = given.get(known.TRANSPARENT, settings.transparent)
    problems = [*_user_problems(spec, containers), *(_port_problems(spec) if transparent else ())]
    if problems:
        raise RefusedPodError("; ".join(problems))
    warnings = [*known.warnings(annotations), *_without_effect(given, transparent=transparent)]
    exposed: list[ExposedPath] = []
    if transparent and given.get(known.OVERWRITE_PROBES, settings.overwrite_probes):
        try:
            exposed, about_probes = probes.rewrite(containers)
        except ProbeError as error:
            raise RefusedPodError(str(error)) from None
        warnings += about_probes
    inputs = PodInputs(
        given=given,
        transparent=transparent,
        exposed_ports=tuple(path.listener_port for path in exposed),
        dns_port=DNS_PORT if transparent and given.get(known.DNS, settings.dns) else None,
        termination_s=spec.get("terminationGracePeriodSeconds", 30),
    )
    _add_variables(containers + (spec.get("initContainers") or []), given)
    _add_containers(spec, inputs, settings)
    metadata = made.setdefault("metadata", {})
    metadata.setdefault("labels", {}).update({known.INJECT_STATUS: INJECTED, known.MANAGED_BY: MANAGER})
    written = metadata.setdefault("annotations", {})
    written[known.INJECT_STATUS] = INJECTED
    if transparent:
        written[known.TRANSPARENT_STATUS] = ENABLED
    written.pop(EXPOSED_PATHS, None)  # only the webhook's own counts
    if exposed:
        written[EXPOSED_PATHS] = json.dumps([path.registered() for path in exposed], separators=(",", ":"))
    return Injected(made, tuple(warnings))


def _annotations(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("annotations") or {}


def _named_ports(containers: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for container in containers:
        for port in container.get("ports") or ():
            if port.get("name"):
                found.setdefault(port["name"], int(port["containerPort"]))
    return found


def _user_problems(spec: Mapping[str, Any], containers: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the users of a pod: its connections would count as the sidecar's."""
    problems = []
    whole = (spec.get("securityContext") or {}).get("runAsUser")
    if whole in RESERVED_USERS:
        problems.append(f"the pod runs as user {whole}, which is that of {RESERVED_USERS[whole]}: choose another one")
    for container in [*containers, *(spec.get("initContainers") or ())]:
        user = (container.get("securityContext") or {}).get("runAsUser")
        if user in RESERVED_USERS and container.get("name") not in (INIT_NAME, SIDECAR_NAME):
            problems.append(
                f"container {container.get('name', '')!r} runs as user {user}, which is that of"
                f" {RESERVED_USERS[user]}: choose another one"
            )
    return problems


def _port_problems(spec: Mapping[str, Any]) -> list[str]:
    reserved = {PUBLIC_PORT: "for connections from the mesh", OUTBOUND_LISTENER_PORT: "for redirected connections"}
    return [
        f"container {container.get('name', '')!r} has port {port['containerPort']}, which the sidecar listens on"
        f" {reserved[port['containerPort']]}: choose another one"
        for container in spec.get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("containerPort") in reserved
    ]


def _without_effect(given: Mapping[Annotation, Any], *, transparent: bool) -> list[str]:
    """Return warnings about annotations that need the transparent proxy where it is off."""
    need_it = (
        known.OVERWRITE_PROBES, known.EXCLUDE_INBOUND, known.EXCLUDE_OUTBOUND, known.EXCLUDE_NETWORKS,
        known.EXCLUDE_USERS, known.DNS,
    )  # fmt: skip
    if transparent:
        return []
    return [
        f"annotation {each.key} has no effect: the pod has no transparent proxy" for each in need_it if each in given
    ]


def _add_variables(containers: list[dict[str, Any]], given: Mapping[Annotation, Any]) -> None:
    variables: dict[str, str] = {}
    for upstream in given.get(known.SERVICE_UPSTREAMS, ()):
        variables |= upstream.variables()
    for container in containers if variables else ():
        environment = container.setdefault("env", [])
        environment += [{"name": name, "value": value} for name, value in variables.items()]


def _add_containers(spec: dict[str, Any], inputs: PodInputs, settings: InjectionSettings) -> None:
    """Add the volume, the init container and the sidecar.

    They are the first init containers, so that the application's own run redirected. A native sidecar runs by then.
    """
    native = inputs.given.get(known.NATIVE, settings.native)
    sidecar = sidecar_container(inputs, settings, native=native)
    first = [init_container(inputs, settings), *([sidecar] if native else [])]
    spec["initContainers"] = [*first, *(spec.get("initContainers") or ())]
    if not native:
        spec["containers"] = [sidecar, *spec["containers"]]
    spec["volumes"] = [*(spec.get("volumes") or ()), *volumes(settings)]
