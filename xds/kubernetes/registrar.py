"""Keeps the pods that have a sidecar registered in Consul, from Kubernetes' Services and EndpointSlices.

Each pod is compared with what was written for it, so that a change of one pod writes that pod only. At the start, and
again and again, what Consul has is read: what is missing there is written again, and what belongs to no pod is
deregistered. Nothing is deregistered because something could not be read: that needs complete lists of everything.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Namespace, Pod, Service
from lightkube.resources.discovery_v1 import EndpointSlice

from xds.kubernetes import annotations as known
from xds.kubernetes.claims import Claims
from xds.kubernetes.containers import PROBLEM
from xds.kubernetes.injection import MANAGER
from xds.kubernetes.reflector import Name, Reflector
from xds.kubernetes.registration import (
    CLUSTER,
    MANAGED_BY,
    NAMESPACE,
    POD,
    SYNTHETIC_NODE,
    Entry,
    Outcome,
    is_managed,
    register,
)
from xds.sources.consul.client import Consul, ConsulError

log = logging.getLogger(__name__)

RESYNC_S = 15.0
"""Seconds between two comparisons with what Consul has."""
RETRY_S = 2.0
"""Seconds before pods that could not be written are tried again."""
AT_ONCE = 16
SERVICE_NAME = "kubernetes.io/service-name"
EVERYWHERE = "*"
CLUSTER_NAMESPACE = "kube-system"
"""Namespace whose UID is the mark of a cluster, by convention."""


class Registrar:
    """Registrar of pods.

    Args:
        client: of Kubernetes' API server.
        consul: to write to.
        legacy: whether Consul is older than 1.10.
        acls: whether pods log in with their ServiceAccount.
        serves: whether the pods of a namespace may be in the mesh.
    """

    def __init__(
        self,
        client: AsyncClient,
        consul: Consul,
        *,
        legacy: bool = False,
        acls: bool = False,
        serves: Callable[[str], bool] = lambda _namespace: True,
    ) -> None:
        self._client: Any = client
        self._consul = consul
        self.legacy = legacy
        self._acls = acls
        self._serves = serves
        self._acting = False
        self._cluster = ""
        self._holders: dict[tuple[str, str], Name] = {}
        """Pods that have an entry, by node and service ID: two pods could have the same ID."""
        labels = {known.MANAGED_BY: MANAGER}
        self._pods = Reflector(client, Pod, self._changed, namespace=EVERYWHERE, labels=labels)
        self._services = Reflector(client, Service, self._services_changed, namespace=EVERYWHERE)
        self._slices = Reflector(client, EndpointSlice, self._slices_changed, namespace=EVERYWHERE)
        self._ready: dict[Name, dict[str, dict[str, bool]]] = defaultdict(dict)
        """Whether each pod's address is ready: by pod, Service and slice."""
        self._in_slice: dict[Name, set[Name]] = {}
        self._by_namespace: dict[str, dict[Name, Any]] = defaultdict(dict)
        """Services of each namespace."""
        self._written: dict[Name, dict[tuple[str, str], Entry]] = {}
        """Entries that Consul has, by pod."""
        self._problems: dict[Name, str] = {}
        self._refused: dict[Name, tuple[str, str]] = {}
        """Body that Consul refused of each pod, and the problem that was reported."""
        self._claims = Claims()
        self._dirty: dict[Name, int] = {}
        """Pods that Consul may not know as they are, each with the number of its last change."""
        self._numbers = itertools.count()
        self._woken = asyncio.Event()
        self.writes = 0
        """Number of requests that changed Consul."""

    async def follow(self) -> None:
        """Follow Kubernetes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for each in (self._pods, self._services, self._slices):
                tasks.create_task(each.run())

    async def act(self) -> None:
        """Write to Consul until cancelled; only one replica may do so at a time."""
        self._written, self._problems, self._refused, self._claims, self._holders = {}, {}, {}, Claims(), {}
        self._cluster = await self._mark()
        for each in (self._pods, self._services, self._slices):
            await each.listed.wait()
        for name in self._pods.objects:  # before anything is written, so that no name changes hands at a start
            self._outcome(name)
            await asyncio.sleep(0)
        self._acting = True
        self._changed(self._pods.objects)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync())
                tasks.create_task(self._write())
        finally:
            self._acting = False
            self._dirty.clear()

    async def _mark(self) -> str:
        """Return the mark of this cluster, as soon as the API server answers."""
        while True:
            try:
                return str((await self._client.get(Namespace, CLUSTER_NAMESPACE)).metadata.uid)
            except httpx2.HTTPError as error:
                log.warning("can't read the namespace %s, and try again: %s", CLUSTER_NAMESPACE, error)
                await asyncio.sleep(RETRY_S)

    # -- what changed -------------------------------------------------------------------------------------------------

    def _changed(self, pods: Iterable[Name]) -> None:
        changed = {pod: next(self._numbers) for pod in pods} if self._acting else {}
        if changed:
            self._dirty.update(changed)
            self._woken.set()

    def _services_changed(self, names: Iterable[Name]) -> None:
        names = list(names)
        namespaces = {namespace for namespace, _ in names}
        for name in names:
            found = self._services.objects.get(name)
            if found is None:
                self._by_namespace[name[0]].pop(name, None)
            else:
                self._by_namespace[name[0]][name] = found
        freed = [self._claims.release(name) for name in names if name not in self._services.objects]
        if any(freed):
            self._changed(self._pods.objects)
        self._changed(pod for pod in self._pods.objects if pod[0] in namespaces)

    def _slices_changed(self, names: Iterable[Name]) -> None:
        for name in names:
            found = self._slices.objects.get(name)
            ready = _endpoints(found) if found is not None else {}
            service = _service_of(found)
            gone = self._in_slice.pop(name, set()) - ready.keys()
            for pod in gone:
                of_pod = self._ready.get(pod, {})
                for of_service in of_pod.values():
                    of_service.pop(name[1], None)
                if not any(of_pod.values()):
                    self._ready.pop(pod, None)
            for pod, is_ready in ready.items():
                self._ready[pod].setdefault(service, {})[name[1]] = is_ready
            if ready:
                self._in_slice[name] = set(ready)
            self._changed([*ready, *gone])

    # -- Consul -------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        reported = ""
        while True:
            await self._woken.wait()
            self._woken.clear()
            limit = asyncio.Semaphore(AT_ONCE)
            brought = await asyncio.gather(*(self._bring(pod, limit) for pod in tuple(self._dirty)))
            failures = [error for error in brought if error]
            if failures:
                if str(failures[0]) != reported:
                    log.warning("pods are not registered, and tried again: %s", failures[0])
                reported = str(failures[0])
                await asyncio.sleep(RETRY_S)
                self._woken.set()
            elif reported:
                log.info("pods are registered again")
                reported = ""

    async def _bring(self, name: Name, limit: asyncio.Semaphore) -> ConsulError | None:
        """Have Consul know one pod as it is. Return the error if Consul does not take it; then it is tried again."""
        async with limit:
            number = self._dirty[name]
            try:
                await self._register(name)
            except ConsulError as error:
                return error
            except Exception:
                # One pod that can't be handled must not keep others from being registered.
                log.exception("pod %s/%s can't be registered", *name)
            if self._dirty[name] == number:
                del self._dirty[name]
            return None

    async def _register(self, name: Name) -> None:
        pod, outcome = self._pods.objects.get(name), self._outcome(name)
        outcome = self._unless_refused(name, self._unless_taken(name, outcome))
        if pod is not None:
            await self._report(name, pod, outcome.problem)
        else:
            self._problems.pop(name, None)
        wanted = {(each.node, each.service_id): each for each in outcome.entries}
        written = self._written.setdefault(name, {})
        for key, entry in wanted.items():
            if written.get(key) != entry:
                self._holders[key] = name
                if not await self._send(name, pod, entry):
                    break
                written[key] = entry
        for key in written.keys() - wanted.keys():
            if self._holders.get(key) == name:
                await self._deregister(*key)
                del self._holders[key]
            del written[key]
        if not written:
            del self._written[name]

    async def _send(self, name: Name, pod: Any, entry: Entry) -> bool:
        """Register an entry. Return whether Consul takes it; if it refuses, report that at the pod.

        Raises:
            ConsulError: it does not answer, or not now.
        """
        try:
            await self._consul.write("/v1/catalog/register", entry.body)
        except ConsulError as error:
            if error.status != HTTPStatus.BAD_REQUEST:
                raise
            problem = f"Consul refuses the registration {entry.service_id}: {error}"
            self._refused[name] = entry.body, problem
            await self._report(name, pod, problem)
            self._changed([name])  # what was written of it goes
            return False
        self.writes += 1
        return True

    def _unless_refused(self, name: Name, outcome: Outcome) -> Outcome:
        """Return ``outcome``, or the problem that Consul refused the same before: it is not tried again unchanged."""
        body, problem = self._refused.get(name, ("", ""))
        if body and any(entry.body == body for entry in outcome.entries):
            return Outcome(problem=problem)
        self._refused.pop(name, None)
        return outcome

    def _unless_taken(self, name: Name, outcome: Outcome) -> Outcome:
        """Return ``outcome``, or the problem that its service's name or an ID is another one's."""
        owner = self._claims.owner(outcome.name) if outcome.name else ""
        if outcome.name and owner != name[0]:
            return Outcome(
                problem=f"the service {outcome.name!r} is that of namespace {owner}: give this pod another name with"
                f" the annotation {known.SERVICE.key}"
            )
        for entry in outcome.entries:
            holder = self._holders.get((entry.node, entry.service_id), name)
            if holder != name and holder in self._pods.objects:
                return Outcome(
                    problem=f"the ID {entry.service_id!r} is that of pod {holder[0]}/{holder[1]} on the same node: give"
                    " one of the pods another name"
                )
        return outcome

    def _outcome(self, name: Name) -> Outcome:
        """Return the registration of a pod as it is now, and have it claim its service's name."""
        pod = self._pods.objects.get(name)
        outcome = Outcome()
        if pod is not None and is_managed(pod) and self._serves(name[0]):
            services = self._by_namespace[name[0]].values()
            ready = {
                service: any(of_slice.values()) for service, of_slice in self._ready.get(name, {}).items() if of_slice
            }
            outcome = register(pod, services, ready, legacy=self.legacy, acls=self._acls, cluster=self._cluster)
            if outcome.name:
                self._claims.claim(outcome.name, (name[0], outcome.service), outcome.since)
        return outcome

    async def _deregister(self, node: str, service_id: str) -> None:
        await self._consul.write("/v1/catalog/deregister", json.dumps({"Node": node, "ServiceID": service_id}))
        self.writes += 1
        log.info("deregistered %s of node %s", service_id, node)

    async def _resync(self) -> None:
        while True:
            try:
                await self._compare()
            except ConsulError as error:
                log.warning("can't compare with what Consul has: %s", error)
            await asyncio.sleep(RESYNC_S)

    async def _compare(self) -> None:
        """Write again what Consul lost, and deregister what belongs to no pod."""
        nodes = await self._consul.read("/v1/catalog/nodes", params=[("node-meta", f"{SYNTHETIC_NODE}:true")])
        there: dict[tuple[str, str], Name] = {}
        for node in [each["Node"] for each in nodes.data]:
            found = (await self._consul.read(f"/v1/catalog/node-services/{node}")).data or {}
            for service in found.get("Services") or ():
                meta = service.get("Meta") or {}
                if meta.get(MANAGED_BY) == MANAGER and meta.get(CLUSTER) == self._cluster:
                    there[node, service["ID"]] = meta.get(NAMESPACE, ""), meta.get(POD, "")
        for name, written in self._written.items():
            for key in [key for key in written if there.get(key) != name]:
                del written[key]
                self._changed([name])
        complete = not any(each.trouble for each in (self._pods, self._services, self._slices))
        for key, name in there.items():
            idle = name not in self._dirty and key not in self._holders
            if complete and idle and await self._is_gone(name, key[1]):
                await self._deregister(*key)

    async def _is_gone(self, name: Name, service_id: str) -> bool:
        """Return whether what Consul has belongs to no pod, by the API server's word at this moment."""
        if name in self._pods.objects:
            return not any(service_id == key[1] for key in self._written.get(name, ()))
        try:
            await self._client.get(Pod, name[1], namespace=name[0])
        except ApiError as error:
            return bool(error.status.code == HTTPStatus.NOT_FOUND)
        except httpx2.HTTPError:
            return False
        return False

    # -- problems -----------------------------------------------------------------------------------------------------

    async def _report(self, name: Name, pod: Any, problem: str) -> None:
        """Say at the pod why it is not registered: as an Event, and as an annotation for its init container."""
        annotated = (pod.metadata.annotations or {}).get(PROBLEM, "")
        if self._problems.get(name, annotated) == problem == annotated:
            return
        self._problems[name] = problem
        try:
            patch = {"metadata": {"annotations": {PROBLEM: problem or None}}}
            await self._client.patch(Pod, name[1], patch, namespace=name[0])
            if problem:
                log.warning("pod %s/%s is not registered: %s", *name, problem)
                await self._client.create(_event(pod, problem))
        except httpx2.HTTPError as error:
            del self._problems[name]
            log.info("can't report the problem of pod %s/%s: %s", *name, error)


def _service_of(found: Any) -> str:
    return "" if found is None else (found.metadata.labels or {}).get(SERVICE_NAME, "")


def _endpoints(found: Any) -> dict[Name, bool]:
    """Return whether each pod of an EndpointSlice is ready, and not terminating."""
    ready: dict[Name, bool] = {}
    for endpoint in found.endpoints or ():
        target, conditions = endpoint.targetRef, endpoint.conditions
        own = target is not None and target.namespace in (None, found.metadata.namespace)  # not another team's pod
        if own and target.kind == "Pod":
            is_ready = conditions is None or conditions.ready is not False
            terminating = conditions is not None and bool(conditions.terminating)
            ready[found.metadata.namespace, target.name] = is_ready and not terminating
    return ready


def _event(pod: Any, problem: str) -> Event:
    metadata, now = pod.metadata, dt.datetime.now(dt.UTC)
    return Event(
        metadata=ObjectMeta(generateName=f"{metadata.name}.", namespace=metadata.namespace),
        involvedObject=ObjectReference(
            apiVersion="v1", kind="Pod", name=metadata.name, namespace=metadata.namespace, uid=metadata.uid
        ),
        reason="NotRegistered",
        message=problem,
        type="Warning",
        count=1,
        firstTimestamp=now,
        lastTimestamp=now,
        source=EventSource(component="gossamer"),
    )
