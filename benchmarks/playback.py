"""Consul's answers played back: what one real Consul said of one service, said of ten thousand. A process of its own.

A benchmark that asks what a mesh of 10,000 services costs Gossamer need not wait for Consul to be filled with 100,000
instances. The answers are a real Consul's, recorded in the same run (`record`), with names, addresses and indices
replaced; blocking queries block as they do there.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from benchmarks.child import obey
from xds.lab.consul import LabConsul

TEMPLATE = "template"
"""The service that was recorded."""
ASKED = {
    "instances": f"/v1/health/connect/{TEMPLATE}",
    "chain": f"/v1/discovery-chain/{TEMPLATE}",
    "roots": "/v1/connect/ca/roots",
    "leaf": f"/v1/agent/connect/ca/leaf/{TEMPLATE}",
    "agent": "/v1/agent/self",
    "intentions": "/v1/connect/intentions",
}


async def record(consul: LabConsul) -> dict[str, Any]:
    """Record this Consul's answers for one service with one instance and its sidecar, and for one intention."""
    mode: dict[str, Any] = {"Mode": "transparent"} if consul.transparent else {}
    address = "10.1.1.1"
    await consul.register(f"node-{TEMPLATE}", address, {"ID": TEMPLATE, "Service": TEMPLATE, "Port": 8080})
    sidecar = {
        "Kind": "connect-proxy",
        "ID": f"{TEMPLATE}-sidecar-proxy",
        "Service": f"{TEMPLATE}-sidecar-proxy",
        "Port": 20000,
        "TaggedAddresses": {"virtual": {"Address": "240.99.99.99", "Port": 80}},
        "Proxy": {
            "DestinationServiceName": TEMPLATE,
            "DestinationServiceID": TEMPLATE,
            "LocalServicePort": 8080,
            "Config": {} if mode else {"mode": "transparent"},
            **mode,
        },
    }
    await consul.register(f"node-{TEMPLATE}", address, sidecar)
    await consul.intention(TEMPLATE, "*", "allow")
    found = {name: (await consul.client.read(path)).data for name, path in ASKED.items()}
    await consul.intention(TEMPLATE, "*", None)
    return found


def virtual_ip(number: int) -> str:
    """Return the virtual IP of a service."""
    return f"240.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Playback:
    """A mesh of services ``s-0`` to ``s-<n>``, as many as it is told, each with the same number of instances."""

    def __init__(self) -> None:
        self._index = 100
        self._bodies: dict[str, tuple[int, bytes]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._services: list[str] = []
        self._weights: dict[str, int] = {}
        self._serials: dict[str, int] = {}
        self._asked: Counter[str] = Counter()
        self._templates: dict[str, Any] = {}
        self._instances = 1
        self._where: dict[str, Any] = {}

    async def start(self, templates: dict[str, Any]) -> int:
        """Listen; the port."""
        self._templates = templates
        server = web.Server(self._answer)
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        self._set("/v1/agent/self", templates["agent"])
        self._set("/v1/connect/ca/roots", templates["roots"])
        assert site._server is not None
        return int(site._server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]

    async def fill(
        self, services: int, instances: int, intentions: list[list[str]], where: dict[str, Any] | None = None
    ) -> None:
        """Have this mesh: so many services of so many instances, and intentions of source, destination, action.

        ``where`` puts all instances at one ``address`` and ``port``, but for those of the services ``own``.
        """
        self._instances, self._where = instances, where or {}
        for number in range(len(self._services), services):
            self._add(f"s-{number}")
        self._name_them()
        self._intend(intentions)

    async def add(self) -> str:
        """One more service."""
        name = f"s-{len(self._services)}"
        self._add(name)
        self._name_them()
        return name

    def _add(self, service: str) -> None:
        self._services.append(service)
        self._weights[service] = 1
        self._set(f"/v1/health/connect/{service}", self._health(service))
        chain = json.dumps(self._templates["chain"]).replace(TEMPLATE, service)
        self._put(f"/v1/discovery-chain/{service}", chain.encode())
        self._leaf(service)

    def _leaf(self, service: str) -> None:
        self._serials[service] = serial = self._serials.get(service, 0) + 1
        leaf = {**self._templates["leaf"], "Service": service, "SerialNumber": f"{serial:x}"}
        leaf["CertPEM"] = f"{leaf['CertPEM']}\n# {serial}\n"
        self._set(f"/v1/agent/connect/ca/leaf/{service}", leaf)

    def _health(self, service: str) -> list[Any]:
        number = int(service.removeprefix("s-"))
        text = json.dumps(self._templates["instances"][0])
        found = []
        for instance in range(self._instances):
            one = json.loads(
                text.replace("240.99.99.99", virtual_ip(number + 1))
                .replace("10.1.1.1", f"10.{instance}.{number >> 8}.{number & 255}")
                .replace(f"node-{TEMPLATE}", f"node-{service}-{instance}")
                .replace(TEMPLATE, service)
            )
            one["Service"]["ID"] = f"{service}-{instance}-sidecar-proxy"
            one["Service"]["Weights"] = {"Passing": self._weights[service] if instance == 0 else 1, "Warning": 1}
            own = self._where.get("own", {}).get(service)
            one["Service"]["Address"] = own or self._where.get("address", one["Service"]["Address"])
            if own is None and "port" in self._where:
                one["Service"]["Port"] = self._where["port"]
            one["Service"]["CreateIndex"] = number + 1
            found.append(one)
        return found

    def _name_them(self) -> None:
        names: dict[str, list[str]] = {"consul": []}
        for service in self._services:
            names[service] = []
            names[f"{service}-sidecar-proxy"] = []
        self._set("/v1/catalog/services", dict(sorted(names.items())))

    def _intend(self, intentions: Iterable[list[str]]) -> None:
        template = self._templates["intentions"][0]
        self._set(
            "/v1/connect/intentions",
            [
                {
                    **template,
                    "ID": f"{number:036x}",
                    "SourceName": source,
                    "DestinationName": destination,
                    "Action": action,
                }
                for number, (source, destination, action) in enumerate(intentions)
            ],
        )

    async def intend(self, intentions: list[list[str]]) -> None:
        """Have these intentions instead."""
        self._intend(intentions)

    async def change(self, service: str) -> None:
        """Another weight for one instance; the catalog's names are told of again, as Consul does."""
        self._weights[service] += 1
        self._set(f"/v1/health/connect/{service}", self._health(service))
        _, names = self._bodies["/v1/catalog/services"]
        self._put("/v1/catalog/services", names)

    async def empty(self, service: str) -> None:
        """Take all instances of a service away."""
        self._set(f"/v1/health/connect/{service}", [])

    async def rotate(self, services: list[str]) -> None:
        """Replace the leaves of these services."""
        for service in services:
            self._leaf(service)

    async def asked(self) -> dict[str, int]:
        """Return the number of requests by kind."""
        return dict(self._asked)

    def _set(self, path: str, data: Any) -> None:
        self._put(path, json.dumps(data).encode())

    def _put(self, path: str, body: bytes) -> None:
        self._index += 1
        self._bodies[path] = (self._index, body)
        event = self._changed.pop(path, None)
        if event is not None:
            event.set()

    def _of_proxy(self, path: str) -> None:
        """Return Consul's answer for the name that only sidecars are registered under."""
        kind, _, service = path.rpartition("/")
        if kind == "/v1/discovery-chain":
            self._put(path, json.dumps(self._templates["chain"]).replace(TEMPLATE, service).encode())
        else:
            self._set(path, [{"ServiceKind": "connect-proxy"}] if kind == "/v1/catalog/service" else [])

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        self._asked[re.sub(r"/s-\d+", "/", path) + (" blocking" if "index" in request.query else "")] += 1
        if path == "/v1/internal/acl/authorize":
            return web.Response(status=401, text="ACL support disabled")
        if path not in self._bodies and path.endswith("-sidecar-proxy"):
            self._of_proxy(path)
        if path not in self._bodies:
            if not path.startswith(("/v1/config", "/v1/catalog/service/", "/v1/connect/intentions/match")):
                return web.Response(status=404, text=f"nobody recorded {path}")
            self._set(path, [])
        index = int(request.query.get("index", "0"))
        if self._bodies[path][0] == index:
            event = self._changed.setdefault(path, asyncio.Event())
            try:
                async with asyncio.timeout(float(request.query.get("wait", "300s").removesuffix("s"))):
                    await event.wait()
            except TimeoutError:
                pass
        found, body = self._bodies[path]
        return web.Response(body=body, content_type="application/json", headers={"X-Consul-Index": str(found)})


async def main() -> None:
    """Obey."""
    playback = Playback()
    names = ("start", "fill", "add", "intend", "change", "empty", "rotate", "asked")
    await obey({name: getattr(playback, name) for name in names})


if __name__ == "__main__":
    asyncio.run(main())
