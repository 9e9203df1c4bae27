"""Runs the processes of ``gossamer kubernetes``: what they follow, what they serve, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightkube import AsyncClient

from xds.kubernetes.leases import Election
from xds.kubernetes.registrar import Registrar
from xds.kubernetes.settings import InjectionSettings
from xds.kubernetes.shared_certificates import SharedCertificates
from xds.kubernetes.webhook import Webhook
from xds.mesh.addresses import HostPort
from xds.sources.consul.client import Consul, ConsulError
from xds.sources.consul.settings import ConsulSettings

log = logging.getLogger(__name__)

CONSUL_RETRY_S = 2.0
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File with the namespace of a pod."""


def own_namespace(given: str) -> str:
    """Return the namespace that this process runs in.

    Raises:
        ValueError: it is neither given nor in the pod's files.
    """
    if given:
        return given
    try:
        return OWN_NAMESPACE.read_text().strip()
    except OSError as error:
        raise ValueError(f"can't read {OWN_NAMESPACE}: {error.strerror}; name the namespace with --namespace") from None


async def run_webhook(
    settings: InjectionSettings,
    listen: HostPort,
    *,
    namespace: str,
    secret: str,
    service: str,
    registration: str,
) -> None:
    """Serve the webhook until SIGTERM or SIGINT.

    Raises:
        ListenError: the address can't be listened on. ValueError: the namespace is not known.
    """
    client = AsyncClient()
    certificates = SharedCertificates(client, own_namespace(namespace), secret, service, registration)
    webhook = Webhook(settings, client, certificates.context)

    async def serve() -> None:
        await certificates.prepare()
        port = await webhook.start(listen)
        log.info("the webhook listens on %s", HostPort(listen.host, port))
        await certificates.keep()

    try:
        await until_signal(serve(), webhook.namespaces.run())
    finally:
        await webhook.stop()
        await client.close()


async def until_signal(*parts: Coroutine[Any, Any, None]) -> None:
    """Run ``parts`` at the same time until SIGTERM or SIGINT, then cancel them; or until one fails.

    Raises:
        Exception: that of a part that failed.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line for each request
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks: list[asyncio.Task[None]] = [loop.create_task(part) for part in parts]
    stopped = loop.create_task(stop.wait())
    try:
        running: set[asyncio.Task[Any]] = {stopped, *tasks}
        while not stopped.done():
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
    finally:
        stopped.cancel()
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def run_registrar(
    settings: ConsulSettings,
    *,
    namespace: str,
    lease: str,
    identity: str,
    acls: bool,
    serves: Callable[[str], bool],
) -> None:
    """Register pods until SIGTERM or SIGINT.

    Raises:
        ValueError: the namespace is not known. SettingsError: Consul's settings can't be used.
    """
    settings.ssl_context()
    client, consul = AsyncClient(), Consul(settings)
    election = Election(client, own_namespace(namespace), lease, identity)
    registrar = Registrar(client, consul, acls=acls, serves=serves)

    async def lead() -> None:
        registrar.legacy = await _is_legacy(consul)
        await election.lead(registrar.act)

    try:
        await until_signal(registrar.follow(), lead(), consul.follow_token_file())
    finally:
        await election.release()
        await consul.close()
        await client.close()


async def _is_legacy(consul: Consul) -> bool:
    """Return whether Consul is older than 1.10, which has a proxy's mode in its opaque configuration."""
    while True:
        try:
            found = await consul.read("/v1/agent/self")
            version = found.data["Config"]["Version"]
            return tuple(int(part) for part in version.split(".")[:2]) < (1, 10)
        except (ConsulError, KeyError, TypeError, ValueError) as error:
            log.warning("can't read Consul's version, and try again: %s", error)
            await asyncio.sleep(CONSUL_RETRY_S)
