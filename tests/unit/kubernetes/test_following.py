"""Tests of what follows and writes objects, against an API server in memory: reflector, leases, certificates."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from tests.unit.kubernetes.api import Api
from xds.kubernetes import leases, reflector, shared_certificates
from xds.kubernetes.certificates import BUNDLE, CERTIFICATE, renewed
from xds.kubernetes.leases import Election
from xds.kubernetes.reflector import Name, Reflector
from xds.kubernetes.shared_certificates import SharedCertificates

PODS = "/api/v1/namespaces/shop/pods"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/one"
SECRET = "/api/v1/namespaces/mesh/secrets/hook"
HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(leases, "RETRY_S", 0.01)
    monkeypatch.setattr(shared_certificates, "RETRY_S", 0.01)
    monkeypatch.setattr(shared_certificates, "CHECK_INTERVAL_S", 0.02)


class Followed:
    """A reflector of all pods, and the names that changed."""

    def __init__(self, api: Api) -> None:
        self.changed: list[Name] = []
        self.reflector = Reflector(api.client(), Pod, self._take, namespace="*")

    def _take(self, names: Iterable[Name]) -> None:
        self.changed += names


async def test_objects_are_listed_and_followed() -> None:
    api = Api()
    api.put(f"{PODS}/a")
    followed = Followed(api)
    async with running(followed.reflector.run()):
        await until(lambda: ("GET", "/api/v1/pods") in api.requests and len(api.requests) == 2)
        assert followed.reflector.listed.is_set()
        assert followed.changed == [("shop", "a")]
        api.put(f"{PODS}/b")
        await until(lambda: ("shop", "b") in followed.reflector.objects)
        api.remove(f"{PODS}/a")
        await until(lambda: ("shop", "a") not in followed.reflector.objects)
        assert followed.changed == [("shop", "a"), ("shop", "b"), ("shop", "a")]


async def test_an_expired_watch_is_listed_again_and_names_what_is_gone() -> None:
    api = Api()
    for name in "ab":
        api.put(f"{PODS}/{name}")
    followed = Followed(api)
    async with running(followed.reflector.run()):
        await until(lambda: len(api.requests) == 2)
        followed.changed.clear()
        api.objects.pop(f"{PODS}/a")
        api.expire()
        await until(lambda: len(api.requests) == 4)
        assert followed.changed == [("shop", "a")]


@pytest.mark.usefixtures("quick")
async def test_the_last_copy_stays_while_the_api_server_fails(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()
    api.put(f"{PODS}/a")
    followed = Followed(api)
    async with running(followed.reflector.run()):
        await until(lambda: len(api.requests) == 2)
        api.failing = 500
        api.expire()
        await until(lambda: followed.reflector.trouble == "failing")
        assert ("shop", "a") in followed.reflector.objects
        api.failing = 0
        await until(lambda: followed.reflector.trouble == "")
    assert caplog.text.count("can't read Pod") == 1


class Replica:
    """A replica that takes part in an election."""

    def __init__(self, api: Api, name: str) -> None:
        self.acting = False
        self.election = Election(api.client(), "mesh", "one", name)

    async def act(self) -> None:
        self.acting = True
        try:
            await asyncio.Event().wait()
        finally:
            self.acting = False


@pytest.mark.usefixtures("quick")
async def test_one_replica_acts_and_another_takes_over_at_once_after_a_release() -> None:
    api = Api()
    first, second = Replica(api, "first"), Replica(api, "second")
    async with running(second.election.lead(second.act)):
        await until(lambda: second.acting)
        async with running(first.election.lead(first.act)):
            renewed_at = api.objects[LEASE]["spec"]["renewTime"]
            await until(lambda: bool(api.objects[LEASE]["spec"]["renewTime"] != renewed_at))
            assert not first.acting
    await second.election.release()
    async with running(first.election.lead(first.act)):
        await until(lambda: first.acting)
    assert api.objects[LEASE]["spec"]["holderIdentity"] == "first"
    assert api.objects[LEASE]["spec"]["leaseTransitions"] == 1


@pytest.mark.usefixtures("quick")
async def test_a_lease_that_is_not_renewed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    old = dt.datetime.now(dt.UTC).isoformat()
    api.put(LEASE, spec={"holderIdentity": "gone", "renewTime": old, "leaseDurationSeconds": 15})
    replica = Replica(api, "here")
    monkeypatch.setattr(leases, "DURATION_S", 1)
    async with running(replica.election.lead(replica.act)):
        await until(lambda: replica.acting)
    assert api.objects[LEASE]["spec"]["holderIdentity"] == "here"


@pytest.mark.usefixtures("quick")
async def test_a_leader_stops_when_it_can_not_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    api, replica = Api(), None
    monkeypatch.setattr(leases, "RENEW_WITHIN_S", 0.2)
    replica = Replica(api, "here")
    async with running(replica.election.lead(replica.act)):
        await until(lambda: replica.acting)
        api.failing = 500
        await until(lambda: not replica.acting)


async def test_an_error_of_the_leader_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Election(Api().client(), "mesh", "one", "here").lead(fails)


def shared(api: Api) -> SharedCertificates:
    return SharedCertificates(api.client(), "mesh", "hook", "gossamer", "hook")


def registered(api: Api) -> Any:
    [webhook] = api.objects[HOOK]["webhooks"]
    return webhook["clientConfig"].get("caBundle")


@pytest.mark.usefixtures("quick")
async def test_certificates_are_shared_and_their_authority_registered() -> None:
    api = Api()
    api.put(HOOK, webhooks=[{"name": "a.b.c", "clientConfig": {"url": "https://x"}, "sideEffects": "None",
                             "admissionReviewVersions": ["v1"]}])  # fmt: skip
    await shared(api).prepare()
    made = api.objects[SECRET]["data"]
    assert registered(api) == made[BUNDLE]
    writes = [each for each in api.requests if each[0] != "GET"]
    assert writes == [("PUT", HOOK), ("POST", SECRET.rpartition("/")[0])], "the API server trusts it first"
    other = shared(api)
    await other.prepare()
    assert [each for each in api.requests if each[0] != "GET"] == writes, "another replica uses what there is"
    api.objects[HOOK]["webhooks"][0]["clientConfig"]["caBundle"] = ""
    async with running(other.keep()):
        await until(lambda: registered(api) == made[BUNDLE])
        old = renewed(None, ("other",), dt.datetime.now(dt.UTC)).data()
        data = {key: base64.b64encode(value).decode() for key, value in old.items()}
        api.put(SECRET, data=data)
        await until(lambda: bool(api.objects[SECRET]["data"][CERTIFICATE] != data[CERTIFICATE]))
        api.failing = 500
        await asyncio.sleep(0.05)
        api.failing = 0
        await until(lambda: registered(api) == api.objects[SECRET]["data"][BUNDLE])


@pytest.mark.usefixtures("quick")
async def test_certificates_are_prepared_as_soon_as_the_api_server_answers() -> None:
    api = Api()
    api.failing = 500
    api.put(HOOK, webhooks=[])
    async with running(shared(api).prepare()):
        await until(lambda: len(api.requests) > 1)
        api.failing = 0
        await until(lambda: SECRET in api.objects)
