"""Makes the two containers that a pod gets: one that waits for its registration and redirects, and the sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xds.kubernetes import annotations as known
from xds.kubernetes.annotations import Annotation
from xds.kubernetes.settings import ENVOY_UID, PUBLIC_PORT, InjectionSettings, Resources

INIT_NAME, SIDECAR_NAME = "gossamer-init", "gossamer-sidecar"
FOLDER = "/run/gossamer"
"""Folder of the files that both containers have: the sidecar's ID, and the socket and certificates of Envoy."""
ID_FILE = f"{FOLDER}/proxy-id"
ENVOY_FOLDER = f"{FOLDER}/envoy"
"""Folder of the sidecar's user alone. A volume is open to all users."""
PROBLEM = "gossamer.io/registration-problem"
"""Annotation with the reason why a pod is not registered; its init container shows it."""
PROBLEM_FOLDER = "/run/gossamer-pod"
PROBLEM_FILE = f"{PROBLEM_FOLDER}/problem"
_OF_POD = {"path": "problem", "fieldRef": {"fieldPath": f"metadata.annotations['{PROBLEM}']"}}
ACCOUNT_FOLDER = "/run/gossamer-account"
ACCOUNT_FILE = f"{ACCOUNT_FOLDER}/token"
"""Token of the pod's ServiceAccount, for the login. A pod need not mount one for its application."""
ACCOUNT_MOUNT = {"name": "gossamer-account", "mountPath": ACCOUNT_FOLDER, "readOnly": True}
ACCOUNT_LIFE_S = 600
GRACE_S, AFTER_GRACE_S = 30, 5
"""Seconds for which a regular sidecar goes on after the pod is deleted, and that are left for its end."""
TOKEN_FILE = f"{ENVOY_FOLDER}/token"
"""Token of Consul that the sidecar's login gave."""
_LOGIN_FILES = f"--account-file {ACCOUNT_FILE} --login-file {TOKEN_FILE}"
MOUNT = {"name": "gossamer", "mountPath": FOLDER}
PROBLEM_MOUNT = {"name": "gossamer-pod", "mountPath": PROBLEM_FOLDER, "readOnly": True}
UNPRIVILEGED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
    "runAsUser": ENVOY_UID,
    "runAsGroup": ENVOY_UID,
    "runAsNonRoot": True,
}
"""Security context of a container of the sidecar's user, as Pod Security's level "restricted" asks for it."""
NODE_SUFFIX = "-virtual"
"""Suffix of the Consul node of a Kubernetes node, as in Consul on Kubernetes."""
_FROM_POD = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "NODE_NAME": "spec.nodeName",
}


def volumes(settings: InjectionSettings) -> list[dict[str, Any]]:
    """Return the volumes of both containers."""
    found: list[dict[str, Any]] = [
        {"name": "gossamer", "emptyDir": {"medium": "Memory"}},
        {"name": "gossamer-pod", "downwardAPI": {"items": [_OF_POD]}},
    ]
    if settings.auth_method:
        token = {"serviceAccountToken": {"path": "token", "expirationSeconds": ACCOUNT_LIFE_S}}
        found.append({"name": "gossamer-account", "projected": {"sources": [token]}})
    return found


@dataclass(frozen=True, slots=True)
class PodInputs:
    """Inputs of the containers of one pod."""

    given: Mapping[Annotation, Any]
    """Values of its annotations."""
    transparent: bool
    exposed_ports: tuple[int, ...]
    """Ports of the sidecar for the kubelet's probes."""
    dns_port: int | None
    """Port where the sidecar answers DNS queries."""
    termination_s: int
    """The pod's ``terminationGracePeriodSeconds``."""


def init_container(inputs: PodInputs, settings: InjectionSettings) -> dict[str, Any]:
    """Return the container that waits until the pod is registered, and redirects it if it is transparent."""
    command = ["gossamer", "kubernetes", "init", "--consul", settings.consul, "--id-file", ID_FILE]
    command += ["--problem-file", PROBLEM_FILE]
    if settings.auth_method:
        command += ["--auth-method", settings.auth_method, "--account-file", ACCOUNT_FILE]
    if inputs.transparent:
        command += ["--", *_redirection(inputs)]
    context = UNPRIVILEGED
    if inputs.transparent:  # the kernel gives NET_ADMIN to root only
        root = {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
        context = {**context, **root, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}
    made = _container(INIT_NAME, command, context, settings, settings.init)
    made["volumeMounts"] = [MOUNT, PROBLEM_MOUNT, *([ACCOUNT_MOUNT] if settings.auth_method else [])]
    return made


def _redirection(inputs: PodInputs) -> list[str]:
    """Return the flags of the redirection (`xds.cli.redirect_traffic`)."""
    given = inputs.given
    inbound = (*inputs.exposed_ports, *given.get(known.EXCLUDE_INBOUND, ()))
    flags: list[tuple[str, Any]] = [
        *(("--exclude-inbound-port", port) for port in inbound),
        *(("--exclude-outbound-port", port) for port in given.get(known.EXCLUDE_OUTBOUND, ())),
        *(("--exclude-outbound-cidr", network) for network in given.get(known.EXCLUDE_NETWORKS, ())),
        *(("--exclude-uid", user) for user in given.get(known.EXCLUDE_USERS, ())),
    ]
    if inputs.dns_port is not None:
        flags.append(("--dns-port", inputs.dns_port))
    where = ["--proxy-uid", str(ENVOY_UID), "--proxy-inbound-port", str(PUBLIC_PORT)]
    return [*where, *(str(part) for flag in flags for part in flag)]


def sidecar_container(inputs: PodInputs, settings: InjectionSettings, *, native: bool) -> dict[str, Any]:
    """Return the container of Envoy.

    Args:
        inputs: of the pod.
        settings: the operator's.
        native: whether it is a native sidecar, which starts before the application and stops after it.
    """
    given = inputs.given
    flags = ["--node-name", f"$(NODE_NAME){NODE_SUFFIX}", "--consul", settings.consul]
    for address in settings.xds:
        flags += ["--xds", str(address)]
    if settings.auth_method:
        flags += ["--token-file", TOKEN_FILE]
    if settings.plaintext:
        flags.append("--plaintext")
    if inputs.dns_port is not None:
        flags += ["--dns-port", str(inputs.dns_port)]
    concurrency = str(given.get(known.CONCURRENCY, settings.concurrency))
    envoy = ["--concurrency", concurrency, *given.get(known.EXTRA_ARGUMENTS, ())]
    login = ""
    if settings.auth_method:  # at each start, since the last one may have logged out
        login = f' && gossamer kubernetes login --consul "$CONSUL" --auth-method "$METHOD" {_LOGIN_FILES}'
    # The shell hands its arguments on as they are: no annotation becomes a part of the script.
    script = f'mkdir -p -m 700 {ENVOY_FOLDER} && read -r id < {ID_FILE}{login} && exec gossamer sidecar "$id" "$@"'
    command = ["sh", "-c", script, "sh", *flags, "--", *envoy]
    resources = Resources(
        cpu_limit=given.get(known.CPU_LIMIT, settings.sidecar.cpu_limit),
        cpu_request=given.get(known.CPU_REQUEST, settings.sidecar.cpu_request),
        memory_limit=given.get(known.MEMORY_LIMIT, settings.sidecar.memory_limit),
        memory_request=given.get(known.MEMORY_REQUEST, settings.sidecar.memory_request),
    )
    made = _container(SIDECAR_NAME, command, UNPRIVILEGED, settings, resources)
    made["env"].append({"name": "RUNTIME_DIRECTORY", "value": ENVOY_FOLDER})
    if settings.auth_method:
        made["env"] += [{"name": "CONSUL", "value": settings.consul}, {"name": "METHOD", "value": settings.auth_method}]
        made["volumeMounts"] = [MOUNT, ACCOUNT_MOUNT]
    listening = {"tcpSocket": {"port": PUBLIC_PORT}, "periodSeconds": 1, "timeoutSeconds": 5}
    made["readinessProbe"] = {**listening, "failureThreshold": 10}
    if native:
        made["restartPolicy"] = "Always"
        # Init containers and the application start when this has succeeded.
        made["startupProbe"] = {**listening, "failureThreshold": 120}
    stop = _stop_command(inputs, settings, native=native)
    if stop:
        made["lifecycle"] = {"preStop": {"exec": {"command": stop}}}
    return made


def _stop_command(inputs: PodInputs, settings: InjectionSettings, *, native: bool) -> list[str]:
    """Return what runs before Envoy is stopped: the rest of the grace period of a regular container, and the logout."""
    longest = max(0, inputs.termination_s - AFTER_GRACE_S)  # the kubelet cuts a hook off at the end of the period
    grace = 0 if native else min(inputs.given.get(known.GRACE_PERIOD, GRACE_S), longest)
    if not settings.auth_method:
        return ["sleep", str(grace)] if grace else []
    logout = ["gossamer", "kubernetes", "logout", "--consul", settings.consul, "--token-file", TOKEN_FILE]
    return ["sh", "-c", f'sleep {grace}; exec "$@"', "sh", *logout]


def _container(
    name: str, command: list[str], context: dict[str, Any], settings: InjectionSettings, resources: Resources
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "env": [
            {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}} for variable, path in _FROM_POD.items()
        ],
        "volumeMounts": [MOUNT],
        "securityContext": context,
    }
    found = resources.written()
    if found:
        made["resources"] = found
    return made
