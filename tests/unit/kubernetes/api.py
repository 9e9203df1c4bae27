"""An API server in memory, behind lightkube's real client: enough of it for what follows and writes objects.

The real one is in the integration tests. This one fails on demand, which the real one does not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from lightkube import AsyncClient, KubeConfig

CONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "here",
    "clusters": [{"name": "here", "cluster": {"server": "http://api"}}],
    "users": [{"name": "user", "user": {}}],
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "user"}}],
}  # fmt: skip


KINDS = frozenset({"pods", "services", "endpointslices", "namespaces"})
"""Kinds that are listed."""


class _Events(httpx2.AsyncByteStream):
    """The events of a watch, until it is expired."""

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue = queue

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (event := await self._queue.get()) is not None:
            yield json.dumps(event).encode() + b"\n"


class Api:
    """Objects by their path, with resource versions, conflicts and watches.

    Attributes:
        failing: status of every answer while it is set.
        requests: method and path of each request.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.failing = 0
        self.requests: list[tuple[str, str]] = []
        self._version = 0
        self._watches: list[tuple[str, asyncio.Queue[Any]]] = []
        self._number = 0

    def client(self) -> AsyncClient:
        return AsyncClient(KubeConfig.from_dict(CONFIG), transport=httpx2.MockTransport(self._answer))

    def put(self, path: str, **document: Any) -> dict[str, Any]:
        """Have an object at ``path``, ``/api/v1/namespaces/NAMESPACE/KIND/NAME``."""
        parts = path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts[:-2] else None
        metadata = {"name": parts[-1], "uid": path, **({"namespace": namespace} if namespace else {})}
        metadata |= document.pop("metadata", {})
        return self._store(path, {**document, "metadata": metadata})

    def remove(self, path: str) -> None:
        """Delete an object."""
        self._tell("DELETED", path, self.objects.pop(path))

    def expire(self) -> None:
        """End every watch with 410."""
        for _, queue in self._watches:
            queue.put_nowait({"type": "ERROR", "object": _status(410, "too old")})
            queue.put_nowait(None)
        self._watches.clear()

    def _store(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        known = path in self.objects
        document["metadata"]["resourceVersion"] = str(self._version)
        self.objects[path] = document
        self._tell("MODIFIED" if known else "ADDED", path, document)
        return document

    def _tell(self, what: str, path: str, document: dict[str, Any]) -> None:
        for followed, queue in self._watches:
            if _in(path, followed):
                queue.put_nowait({"type": what, "object": json.loads(json.dumps(document))})

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path, method = request.url.path, request.method
        self.requests.append((method, path))
        if self.failing:
            return httpx2.Response(self.failing, json=_status(self.failing, "failing"))
        if method == "GET" and path in self.objects:
            return httpx2.Response(200, json=self.objects[path])
        if method == "GET" and request.url.params.get("watch") == "true":
            queue: asyncio.Queue[Any] = asyncio.Queue()
            self._watches.append((path, queue))
            return httpx2.Response(200, stream=_Events(queue))
        if method == "GET" and path.rpartition("/")[2] in KINDS:
            items = [each for at, each in self.objects.items() if _in(at, path)]
            return httpx2.Response(200, json={"metadata": {"resourceVersion": str(self._version)}, "items": items})
        return self._write(method, path, json.loads(request.content or b"null"))

    def _write(self, method: str, path: str, body: Any) -> httpx2.Response:
        if method == "POST":
            self._number += 1
            name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{self._number}"
            body["metadata"]["name"] = name
            if f"{path}/{name}" in self.objects:
                return httpx2.Response(409, json=_status(409, "it exists"))
            return httpx2.Response(201, json=self._store(f"{path}/{name}", body))
        found = self.objects.get(path)
        if found is None:
            return httpx2.Response(404, json=_status(404, "not found"))
        if method == "PUT":
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                return httpx2.Response(409, json=_status(409, "conflict"))
            return httpx2.Response(200, json=self._store(path, body))
        given = found["metadata"].setdefault("annotations", {}) | body["metadata"]["annotations"]
        metadata = found["metadata"] | {
            "annotations": {key: value for key, value in given.items() if value is not None}
        }
        return httpx2.Response(200, json=self._store(path, found | {"metadata": metadata}))


def _in(path: str, followed: str) -> bool:
    """Return whether an object is one of a list: of one namespace, or of all."""
    parts = path.split("/")
    if "namespaces" in parts[:-2] and "/namespaces/" not in followed + "/":
        at = parts.index("namespaces")
        path = "/".join(parts[:at] + parts[at + 2 :])
    return path.rpartition("/")[0] == followed


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "status": "Failure"}
