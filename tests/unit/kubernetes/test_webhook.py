"""Tests of the webhook's server: answers, requests that are none, and a namespace that can't be read."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.unit.facts import FREE_PORT
from tests.unit.kubernetes.api import Api
from tests.unit.kubernetes.test_admission import review
from tests.unit.kubernetes.test_injection import SETTINGS, make_pod
from xds.ads.listening import ListenError
from xds.kubernetes.shared_certificates import SharedCertificates
from xds.kubernetes.webhook import Webhook
from xds.mesh.addresses import HostPort

HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook"
POD = make_pod({"connect-inject": "true"})


@dataclass
class Served:
    api: Api
    webhook: Webhook
    port: int

    async def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        url = f"https://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=data, headers=headers, ssl=False) as response,
        ):
            return response.status, await response.text()

    async def admit(self, pod: Any) -> Any:
        status, text = await self.ask("POST", "/mutate", review(pod))
        assert status == 200
        return json.loads(text)["response"]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    api = Api()
    api.put(HOOK, webhooks=[])
    certificates = SharedCertificates(api.client(), "mesh", "hook", "gossamer", "hook")
    await certificates.prepare()
    webhook = Webhook(SETTINGS, api.client(), certificates.context)
    port = await webhook.start(FREE_PORT)
    following = asyncio.create_task(webhook.namespaces.run())
    yield Served(api, webhook, port)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await webhook.stop()


async def test_a_pod_is_patched_with_the_labels_of_its_namespace(served: Served) -> None:
    labels = {"consul.hashicorp.com/transparent-proxy": "false"}
    served.api.put("/api/v1/namespaces/shop", metadata={"labels": labels})
    response = await served.admit(POD)
    assert response["allowed"]
    assert "NET_ADMIN" not in base64.b64decode(response["patch"]).decode()
    status, text = await served.ask("GET", "/metrics")
    assert (status, 'gossamer_admissions_total{outcome="injected"} 1.0' in text) == (200, True)


async def test_a_refused_pod_is_counted(served: Served) -> None:
    served.api.put("/api/v1/namespaces/shop")
    response = await served.admit(make_pod({"connect-inject": "?"}))
    assert not response["allowed"]
    assert 'outcome="refused"} 1.0' in (await served.ask("GET", "/metrics"))[1]


async def test_a_namespace_that_can_not_be_read_refuses_the_pod(served: Served) -> None:
    response = await served.admit(POD)
    assert not response["allowed"]
    assert "can't read the namespace 'shop'" in response["status"]["message"]


async def test_an_error_of_our_own_refuses_the_pod(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.api.put("/api/v1/namespaces/shop")
    monkeypatch.setattr("xds.kubernetes.admission.inject", lambda *_: 1 / 0)
    response = await served.admit(POD)
    assert response["status"]["message"] == "gossamer: internal error; the webhook's log has the details"


async def test_what_is_not_a_review_is_an_error(served: Served) -> None:
    assert await served.ask("POST", "/mutate", {}) == (400, "the body is not an AdmissionReview of "
                                                       "admission.k8s.io/v1 or admission.k8s.io/v1beta1")  # fmt: skip
    status, text = await served.ask("POST", "/mutate", {}, "text/plain")
    assert (status, text) == (400, "contentType=text/plain, expected application/json")


async def test_it_is_ready_when_namespaces_have_been_read(served: Served) -> None:
    await asyncio.wait_for(served.webhook.namespaces.listed.wait(), 20)
    assert await served.ask("GET", "/readyz") == (200, "ok\n")
    assert await served.ask("GET", "/healthz") == (200, "ok\n")
    served.webhook.namespaces.listed.clear()
    assert (await served.ask("GET", "/readyz"))[0] == 503


async def test_a_port_in_use_is_an_error(served: Served) -> None:
    webhook = Webhook(SETTINGS, served.api.client(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(ListenError, match="in use"):
        await webhook.start(HostPort("127.0.0.1", served.port))
    await webhook.stop()
