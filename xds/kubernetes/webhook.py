"""The HTTPS server of the mutating webhook: ``/mutate``, ``/healthz`` and ``/readyz``.

It answers from memory: labels of namespaces are followed, and neither Consul nor the API server is asked during an
admission, except about a namespace that is so new that it is not known yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping

import httpx2
from aiohttp import web
from lightkube import AsyncClient
from lightkube.resources.core_v1 import Namespace
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from xds.ads.listening import ListenError
from xds.kubernetes.admission import MAX_BYTES, NotAReviewError, Review
from xds.kubernetes.reflector import Reflector
from xds.kubernetes.settings import InjectionSettings
from xds.mesh.addresses import HostPort

log = logging.getLogger(__name__)

NAMESPACE_WITHIN_S = 2.0
"""Seconds that the API server has to answer about a new namespace, of the ten that an admission has."""
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)


class Webhook:
    """Server of the mutating webhook.

    Args:
        settings: of injection.
        client: of the API server.
        context: TLS with the certificate to present.
    """

    def __init__(self, settings: InjectionSettings, client: AsyncClient, context: ssl.SSLContext) -> None:
        self._settings = settings
        self._client = client
        self._context = context
        self.namespaces = Reflector(client, Namespace, lambda _names: None)
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "gossamer_admission_seconds", "Time to answer an admission.", buckets=BUCKETS, registry=self._registry
        )
        self._answers = Counter("gossamer_admissions", "Admissions by outcome.", ["outcome"], registry=self._registry)
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_post("/mutate", self._mutate)
        app.router.add_get("/healthz", _healthy)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, address: HostPort) -> int:
        """Listen. Return the port, which is a free one for port 0.

        Raises:
            ListenError: the address can't be listened on.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port, ssl_context=self._context).start()
        except OSError as error:
            raise ListenError(f"can't listen on {address}: {error.strerror or error}") from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening, after the admissions in progress."""
        await self._runner.cleanup()

    async def _mutate(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        if request.content_type != "application/json":
            text = f"contentType={request.content_type}, expected application/json"
            raise web.HTTPBadRequest(text=text)
        body = await request.read()
        try:
            review = Review.parse(body)
        except NotAReviewError as error:
            self._answers.labels("malformed").inc()
            raise web.HTTPBadRequest(text=str(error)) from error
        try:
            answer = review.answer(await self._labels(review.namespace), self._settings)
        except (httpx2.HTTPError, TimeoutError) as error:
            answer = review.failure(f"can't read the namespace {review.namespace!r}: {error or 'no answer'}")
        except Exception:
            log.exception("the admission of a pod in namespace %s failed", review.namespace)
            answer = review.failure("internal error; the webhook's log has the details")
        response = answer["response"]
        self._answers.labels(_outcome(response)).inc()
        if not response["allowed"]:
            log.info("refused a pod in namespace %s: %s", review.namespace, response["status"]["message"])
        self._seconds.observe(time.perf_counter() - began)
        return web.json_response(answer, dumps=_compact)

    async def _labels(self, namespace: str) -> Mapping[str, str]:
        known = self.namespaces.objects.get(("", namespace))
        if known is None:
            async with asyncio.timeout(NAMESPACE_WITHIN_S):
                known = await self._client.get(Namespace, namespace)
        metadata = known.metadata
        return (metadata.labels or {}) if metadata is not None else {}

    async def _ready(self, _request: web.Request) -> web.Response:
        if self.namespaces.listed.is_set():
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"namespaces have not been read: {self.namespaces.trouble or 'soon'}\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _compact(answer: object) -> str:
    return json.dumps(answer, separators=(",", ":"))


def _outcome(response: Mapping[str, object]) -> str:
    if not response["allowed"]:
        return "refused"
    return "injected" if "patch" in response else "unchanged"
