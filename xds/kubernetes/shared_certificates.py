"""Keeps the webhook's certificates in a Secret, and its authority in the webhook's registration.

Every replica does so. The API server's check of the resource version decides when two of them replace the
certificates at the same time; the other one uses what it finds then.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
import ssl
import tempfile
from http import HTTPStatus
from pathlib import Path

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Secret

from xds.kubernetes.certificates import WebhookCertificates, parse, renewed

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 60.0
"""Seconds between two looks at the Secret and the registration, which somebody may have replaced."""
RETRY_S = 2.0


class SharedCertificates:
    """Certificates of the webhook in a Secret.

    Args:
        client: of the API server.
        namespace: of the Secret.
        secret: its name.
        service: name of the Service that the API server calls.
        registration: name of the MutatingWebhookConfiguration.
    """

    def __init__(self, client: AsyncClient, namespace: str, secret: str, service: str, registration: str) -> None:
        self._client = client
        self._namespace = namespace
        self._secret = secret
        self._registration = registration
        self._names = tuple(f"{service}{suffix}" for suffix in ("", f".{namespace}", f".{namespace}.svc"))
        self._used: WebhookCertificates | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def prepare(self) -> None:
        """Have the certificates in use and in the registration; tried again until that works."""
        while True:
            try:
                await self._look()
            except httpx2.HTTPError as error:
                log.warning("can't prepare the webhook's certificates: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def keep(self) -> None:
        """Replace the certificates in time, and follow what other replicas make, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self._look()
            except httpx2.HTTPError as error:
                log.warning("can't look at the webhook's certificates; those in use stay: %s", error)

    async def _look(self) -> None:
        found, current = await self._read()
        wanted = renewed(current, self._names, dt.datetime.now(dt.UTC))
        # The API server has to trust the authority before a certificate of it is presented.
        await self._register(wanted.bundle)
        if wanted is not current:
            try:
                await self._write(found, wanted)
            except ApiError as error:
                if error.status.code != HTTPStatus.CONFLICT:
                    raise
                await self._look()  # another replica was first
                return
        if wanted != self._used:
            await asyncio.to_thread(_load, self.context, wanted)
            self._used = wanted
            log.info("the webhook presents the certificate in the Secret %s/%s", self._namespace, self._secret)

    async def _read(self) -> tuple[Secret | None, WebhookCertificates | None]:
        try:
            found = await self._client.get(Secret, self._secret, namespace=self._namespace)
        except ApiError as error:
            if error.status.code == HTTPStatus.NOT_FOUND:
                return None, None
            raise
        data = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        return found, parse(data)

    async def _write(self, found: Secret | None, wanted: WebhookCertificates) -> None:
        data = {key: base64.b64encode(value).decode() for key, value in wanted.data().items()}
        if found is None:
            metadata = ObjectMeta(name=self._secret, namespace=self._namespace)
            await self._client.create(Secret(metadata=metadata, type="kubernetes.io/tls", data=data))
        else:
            found.data = data
            await self._client.replace(found)

    async def _register(self, bundle: bytes) -> None:
        text = base64.b64encode(bundle).decode()
        while True:
            found = await self._client.get(MutatingWebhookConfiguration, self._registration)
            if all(each.clientConfig.caBundle == text for each in found.webhooks or ()):
                return
            for each in found.webhooks or ():
                each.clientConfig.caBundle = text
            try:
                await self._client.replace(found)
            except ApiError as error:
                if error.status.code != HTTPStatus.CONFLICT:
                    raise
            else:
                log.info("the webhook configuration %s has the authority in use", self._registration)
                return


def _load(context: ssl.SSLContext, certificates: WebhookCertificates) -> None:
    """Present these certificates from the next handshake on."""
    with tempfile.TemporaryDirectory(prefix="gossamer-webhook-") as folder:
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        certificate.write_bytes(certificates.certificate)
        key.touch(mode=0o600)
        key.write_bytes(certificates.key)
        context.load_cert_chain(certificate, key)
