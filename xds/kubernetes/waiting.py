"""Logs a pod in to Consul and waits until it is registered, in its init container, which says what it waits for."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from xds.kubernetes.containers import NODE_SUFFIX
from xds.kubernetes.registration import NAMESPACE, POD, UID
from xds.mesh.names import CONNECT_PROXY
from xds.sources.consul.client import Consul, ConsulError

log = logging.getLogger(__name__)

BLOCK_S = 10.0
"""Seconds that a query for the node's services blocks."""
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class OwnPod:
    """The pod that this process runs in."""

    name: str
    namespace: str
    uid: str
    node: str


async def login(consul: Consul, pod: OwnPod, method: str, account_file: Path) -> str:
    """Log in to Consul with the token of the pod's ServiceAccount. Return Consul's token.

    Args:
        consul: where to log in.
        pod: for the token's description.
        method: Consul's auth method.
        account_file: the ServiceAccount's token, which Kubernetes replaces.
    """
    reported = ""
    while True:
        try:
            bearer = (await asyncio.to_thread(account_file.read_text)).strip()
            body = {"AuthMethod": method, "BearerToken": bearer, "Meta": {"pod": f"{pod.namespace}/{pod.name}"}}
            found = await consul.write("/v1/acl/login", json.dumps(body), post=True)
            return str(found["SecretID"])
        except (ConsulError, OSError, KeyError, TypeError) as error:
            state = f"can't log in with auth method {method!r}: {error}"
        if state != reported:
            log.info("waiting for pod %s/%s: %s", pod.namespace, pod.name, state)
            reported = state
        await asyncio.sleep(RETRY_S)


async def logged_out(consul: Consul) -> None:
    """Give back the token of ``consul``, which a login gave.

    Raises:
        ConsulError: Consul does not answer, or does not know the token.
    """
    await consul.write("/v1/acl/logout", "", post=True)


async def registered(consul: Consul, pod: OwnPod, problem_file: Path | None) -> str:
    """Wait until the pod's sidecar is registered. Return its ID.

    Args:
        consul: to read.
        pod: whose sidecar.
        problem_file: file with the reason why the pod is not registered, which Kubernetes keeps current.
    """
    path = f"/v1/catalog/node-services/{pod.node}{NODE_SUFFIX}"
    index: int | None = None
    reported = ""
    while True:
        state = "it is not registered in Consul yet"
        try:
            reply = await consul.read(path, index=index, wait_s=BLOCK_S)
            index = reply.index
            found = _sidecar(reply.data, pod)
            if found:
                return found
        except ConsulError as error:
            index, state = None, str(error)
            await asyncio.sleep(RETRY_S)
        problem = await asyncio.to_thread(_read, problem_file)
        state = problem or state
        if state != reported:
            log.info("waiting for pod %s/%s: %s", pod.namespace, pod.name, state)
            reported = state


def _sidecar(data: object, pod: OwnPod) -> str:
    services = data.get("Services") if isinstance(data, dict) else None
    own = {POD: pod.name, NAMESPACE: pod.namespace, UID: pod.uid}
    for service in services or ():
        if service.get("Kind") == CONNECT_PROXY and own.items() <= (service.get("Meta") or {}).items():
            return str(service["ID"])
    return ""


def _read(file: Path | None) -> str:
    try:
        return file.read_text().strip() if file is not None else ""
    except OSError:
        return ""
