"""The cost of a change is the change: the work that each kind of change takes is counted, in meshes of two sizes.

Counted are encodings, sidecars whose own resources are looked at, responses and their bytes. None of these may grow
with the number of services or of sidecars that a change is not about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.unit.control.bench import OUTBOUND, Bench
from tests.unit.facts import make_instance, make_instances
from xds.ads import codec
from xds.ads.messages import Request
from xds.control.plane import ControlPlane
from xds.control.proxy import Proxy
from xds.envoy import outbound
from xds.envoy.clusters import service_cluster
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, SECRET, Resource
from xds.mesh import mesh
from xds.mesh.chains import default_chain
from xds.mesh.config_entries import ConfigEntries, ProxyMode, ProxySettings
from xds.mesh.facts import ServiceInstances
from xds.mesh.intentions import Action, Intention
from xds.mesh.mesh import Key, Kind

CALLERS = 3
"""Sidecars that a change is about."""


class Fleet:
    """A mesh of ``size`` services, each with a sidecar; only those of ``caller`` may call ``called``."""

    def __init__(self, size: int, work: Counter[str]) -> None:
        self.work = work
        service_cluster.cache_clear()
        self.bench = Bench(default_allow=False)
        self.intentions = [Intention("*", "shared", Action.ALLOW), Intention("caller", "called", Action.ALLOW)]
        self.intentions += [Intention("other-0", f"other-{number}", Action.ALLOW) for number in range(size)]
        names = ["called", "shared", *(f"other-{number}" for number in range(size))]
        self.bench.intentions(*self.intentions)
        siblings = tuple(make_instance("caller", number, "240.1.0.1") for number in range(CALLERS))
        self.bench.service("caller", instances=ServiceInstances("caller", siblings))
        for number, name in enumerate(names):
            self.bench.service(name, f"240.0.{number >> 8}.{number & 255}")
        self.proxies: list[Proxy] = []
        for number in range(CALLERS):
            self.connect("caller", number)
        for name in names:
            self.connect(name)
        self.exchange()
        work.clear()

    def connect(self, service: str, number: int = 1) -> None:
        self.bench.leaf(service)
        proxy = self.bench.connect(service, number)
        self.proxies.append(proxy)
        for type_url in (CLUSTER, LISTENER, SCOPED_ROUTE):
            proxy.session.receive(Request(type_url, subscribe=("*",)))
        proxy.session.receive(Request(SECRET, subscribe=("leaf", "roots")))
        proxy.session.receive(Request(ENDPOINT, subscribe=()))

    def exchange(self) -> None:
        """Send what there is to send, and acknowledge it, as Envoy does."""
        for proxy in self.proxies:
            while (response := proxy.session.next_response()) is not None:
                self.work["responses"] += 1
                self.work["bytes"] += len(codec.encode_response(response, delta=True))
                proxy.session.receive(Request(response.type_url, response.nonce))
                if response.type_url == CLUSTER:
                    fresh = tuple(r.name for r in response.resources if r.endpoints)
                    if fresh:
                        proxy.session.receive(Request(ENDPOINT, subscribe=fresh))


def an_endpoint(fleet: Fleet) -> None:
    fleet.bench.plane.apply({Key(Kind.INSTANCES, "called"): make_instances("called", "240.0.0.0", weight_passing=7)})


def a_new_service(fleet: Fleet) -> None:
    fleet.bench.intentions(*fleet.intentions, Intention("caller", "new", Action.ALLOW))
    fleet.bench.service("new", "240.9.0.1")


def an_intention(fleet: Fleet) -> None:
    others = [each for each in fleet.intentions if (each.source, each.destination) != ("caller", "called")]
    fleet.bench.intentions(*others, Intention("caller", "called", Action.DENY))


def a_config_entry(fleet: Fleet) -> None:
    settings = {"called": ProxySettings(max_inbound_connections=5)}
    fleet.bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(service_defaults=settings)})


def a_chain(fleet: Fleet) -> None:
    fleet.bench.plane.apply({Key(Kind.CHAIN, "called"): default_chain("called", connect_timeout_ms=77)})


def a_certificate(fleet: Fleet) -> None:
    fleet.bench.leaf("caller", serial="02")


def the_same_again(fleet: Fleet) -> None:
    fleet.bench.plane.apply({Key(Kind.INSTANCES, "called"): make_instances("called", "240.0.0.0")})


def a_reconnect(fleet: Fleet) -> None:
    gone = fleet.proxies.pop(0)
    known = {url: dict(gone.session.state(url).has) for url in (CLUSTER, ENDPOINT, LISTENER, SECRET)}
    fleet.bench.plane.detach(gone)
    again = fleet.bench.connect("caller", 0)
    for type_url, versions in known.items():
        names = ("*",) if type_url in (CLUSTER, LISTENER) else tuple(versions)
        again.session.receive(Request(type_url, subscribe=names, initial_versions=versions))
    fleet.proxies.insert(0, again)


CHANGES: dict[Callable[[Fleet], None], dict[str, int]] = {
    # The endpoints, once, for each caller; and the called sidecar looks whether its own registration changed.
    an_endpoint: {"encoded": 1, "looked at": 1, "responses": CALLERS},
    a_new_service: {"encoded": 2, "looked at": CALLERS, "responses": 2 * CALLERS},
    # What the public listener of the called admits; what its callers lose is merely taken away.
    an_intention: {"looked at": CALLERS + 1, "responses": 2 * CALLERS + 1},
    a_config_entry: {"looked at": 1, "responses": 2},
    a_chain: {"encoded": 2, "looked at": 1, "responses": 2 * CALLERS},
    a_certificate: {"looked at": CALLERS, "responses": CALLERS},
    the_same_again: {"encoded": 0, "looked at": 0, "responses": 0, "bytes": 0},
    # Before its stream is authorized, and after that.
    a_reconnect: {"encoded": 0, "looked at": 2, "responses": 0, "bytes": 0},
}


def counted(work: Counter[str], what: str, function: Callable[..., object]) -> Callable[..., object]:
    """Return the function, with its calls counted."""

    def wrapped(*arguments: object, **named: object) -> object:
        work[what] += 1
        return function(*arguments, **named)

    return wrapped


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_work_for_a_change_does_not_grow_with_the_mesh(
    change: Callable[[Fleet], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    work: Counter[str] = Counter()
    monkeypatch.setattr(Resource, "__post_init__", counted(work, "encoded", Resource.__post_init__))
    monkeypatch.setattr(ControlPlane, "_update", counted(work, "looked at", ControlPlane._update))
    found = []
    for size in (10, 80):
        fleet = Fleet(size, work)
        change(fleet)
        fleet.exchange()
        found.append(dict(work))
    assert found[0] == found[1], "it grew with the mesh"
    for what, expected in CHANGES[change].items():
        assert found[0].get(what, 0) == expected, what


@pytest.mark.parametrize("services", [10, 40])
def test_the_lists_of_a_cold_start_do_not_grow_with_the_number_of_http_services(
    services: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: Counter[str] = Counter()
    monkeypatch.setattr(outbound, "outbound", counted(work, "listeners", outbound.outbound))
    later: list[Callable[[], None]] = []
    bench = Bench(later=later.append)
    http = ProxySettings(protocol="http", mode=ProxyMode.TRANSPARENT)
    names = [f"http-{number}" for number in range(services)]
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(proxy_defaults=http)})
    bench.plane.apply({mesh.SERVICE_NAMES: frozenset({"web", "zzz-tcp", *names})})
    bench.plane.apply({Key(Kind.INSTANCES, "web"): make_instances("web"), Key(Kind.CHAIN, "web"): default_chain("web")})
    bench.leaf("web")
    proxy = bench.connect("web")
    for number, name in enumerate(names):
        chain = default_chain(name, "http")
        bench.plane.apply({Key(Kind.INSTANCES, name): make_instances(name, f"240.0.0.{number}")})
        bench.plane.apply({Key(Kind.CHAIN, name): chain})
    assert not proxy.ready
    last = {Key(Kind.INSTANCES, "zzz-tcp"): make_instances("zzz-tcp", "240.1.0.1")}
    bench.plane.apply({**last, Key(Kind.CHAIN, "zzz-tcp"): default_chain("zzz-tcp")})
    assert proxy.ready
    listener = proxy.get(LISTENER, OUTBOUND)
    assert listener is not None
    assert len(listener.routes) == services, "all that have been read"
    assert work["listeners"] <= 4
