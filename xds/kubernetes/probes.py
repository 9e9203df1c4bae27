"""Rewrites probes and hooks of the kubelet, which reach the pod in plain text and past mutual TLS.

The kubelet's HTTP and gRPC probes go to a port of the sidecar that admits one exact path (``Proxy.Expose.Paths``). The
numbers are those of Consul on Kubernetes: 20300, 20400 and 20500 plus the container's number for liveness, readiness
and startup probes; hooks, which it does not rewrite, follow at 20700 and 20800.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

FIRST_PORTS = {"livenessProbe": 20300, "readinessProbe": 20400, "startupProbe": 20500}
HOOK_PORTS = {"postStart": 20700, "preStop": 20800}
CONTAINERS_AT_MOST = 100
"""Containers of a pod whose probes can be rewritten; the port ranges are so far apart."""
GRPC_CHECK = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """A path of a container that the sidecar exposes to the kubelet."""

    path: str
    listener_port: int
    local_port: int
    http2: bool = False

    def registered(self) -> dict[str, Any]:
        """Return the path as it is registered in Consul (``Proxy.Expose.Paths``)."""
        return {
            "Path": self.path,
            "ListenerPort": self.listener_port,
            "LocalPathPort": self.local_port,
            "Protocol": "http2" if self.http2 else "http",
        }


def parse(text: str) -> list[ExposedPath]:
    """Return the exposed paths that ``text``, an annotation, lists as they are registered.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = json.loads(text)
        return [
            ExposedPath(each["Path"], each["ListenerPort"], each["LocalPathPort"], each["Protocol"] == "http2")
            for each in found
            if each["Path"].startswith("/") and 0 < each["ListenerPort"] < 65536 and 0 < each["LocalPathPort"] < 65536
        ]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


class ProbeError(Exception):
    """Probe that can't be rewritten; the message says which one, and what to do."""


def rewrite(containers: list[dict[str, Any]]) -> tuple[list[ExposedPath], list[str]]:
    """Point the probes and HTTP hooks of ``containers``, which are changed, to ports of the sidecar.

    Returns:
        The exposed paths, and warnings about probes that stay as they are.

    Raises:
        ProbeError: a probe names a port that its container does not have, or there are too many containers.
    """
    if len(containers) > CONTAINERS_AT_MOST:
        raise ProbeError(
            f"{len(containers)} containers: probes are rewritten for {CONTAINERS_AT_MOST} at most; set the annotation"
            " consul.hashicorp.com/transparent-proxy-overwrite-probes to false"
        )
    paths: list[ExposedPath] = []
    warnings: list[str] = []
    for number, container in enumerate(containers):
        for what, port, handler in _handlers(container, number):
            where = f"container {container.get('name', '')!r}: {what}"
            if "httpGet" in handler:
                _rewrite_http(handler["httpGet"], where, container, port, paths, warnings)
            elif "grpc" in handler:
                exposed = ExposedPath(GRPC_CHECK, port, int(handler["grpc"]["port"]), http2=True)
                handler["grpc"]["port"] = _expose(paths, exposed)
            elif "tcpSocket" in handler:
                warnings.append(
                    f"{where} opens a TCP connection, which the sidecar accepts: it does not show whether the"
                    " application listens. An exec or HTTP probe does"
                )
    return paths, warnings


def _handlers(container: Mapping[str, Any], number: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for what, first in FIRST_PORTS.items():
        if container.get(what):
            yield what, first + number, container[what]
    for what, first in HOOK_PORTS.items():
        hook = (container.get("lifecycle") or {}).get(what)
        if hook and "tcpSocket" not in hook:
            yield what, first + number, hook


def _rewrite_http(
    request: dict[str, Any],
    where: str,
    container: Mapping[str, Any],
    port: int,
    paths: list[ExposedPath],
    warnings: list[str],
) -> None:
    if request.get("host"):
        return  # it goes to another host
    if request.get("scheme", "HTTP") == "HTTPS":
        warnings.append(
            f"{where} uses HTTPS, which the sidecar can't expose for one path: exclude its port with the annotation"
            " consul.hashicorp.com/transparent-proxy-exclude-inbound-ports, or use HTTP"
        )
        return
    path = (request.get("path") or "/").partition("?")[0]  # Envoy compares the path without the query
    path = path if path.startswith("/") else f"/{path}"
    request["port"] = _expose(paths, ExposedPath(path, port, _number(request["port"], where, container)))


def _expose(paths: list[ExposedPath], wanted: ExposedPath) -> int:
    """Expose a path. Return its port: that of an equal path, which Consul before 1.10 takes only once."""
    for path in paths:
        if replace(path, listener_port=wanted.listener_port) == wanted:
            return path.listener_port
    paths.append(wanted)
    return wanted.listener_port


def _number(port: Any, where: str, container: Mapping[str, Any]) -> int:
    if isinstance(port, int):
        return port
    for each in container.get("ports") or ():
        if each.get("name") == port:
            return int(each["containerPort"])
    raise ProbeError(f"{where} names the port {port!r}, which the container does not have")
