"""Tests that a view of a shared table equals one of a table of its own, after any series of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.control.bench import Bench
from tests.unit.facts import make_instance
from xds.control import work_queue
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE
from xds.mesh import mesh
from xds.mesh.chains import default_chain
from xds.mesh.config_entries import ConfigEntries, ProxySettings, UpstreamSettings
from xds.mesh.facts import ServiceInstances
from xds.mesh.intentions import Action, Intention
from xds.mesh.mesh import Key, Kind

NAMES = ["web", "api", "db"]
SERVICE = st.sampled_from(NAMES)
WHO = st.sampled_from([*NAMES, "Api", "WEB", "*"])
CHANGE = st.one_of(
    st.tuples(st.just("instances"), SERVICE, st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("chain"), SERVICE, st.sampled_from(["tcp", "http"])),
    st.tuples(st.just("intentions"), st.dictionaries(st.tuples(WHO, WHO), st.sampled_from(Action), max_size=4)),
    st.tuples(st.just("names"), st.frozensets(SERVICE)),
    st.tuples(st.just("default"), st.booleans()),
    st.tuples(st.just("entries"), SERVICE, SERVICE, st.sampled_from([None, 7])),
)
TYPES = (CLUSTER, ENDPOINT, SCOPED_ROUTE, LISTENER)


def make(change: tuple[object, ...]) -> dict[Key, object]:
    match change:
        case ("instances", str(service), int(address), int(weight)):
            instance = make_instance(service, 1, f"240.0.0.{address}", weight_passing=weight)
            return {Key(Kind.INSTANCES, service): ServiceInstances(service, (instance,))}
        case ("chain", str(service), str(protocol)):
            return {Key(Kind.CHAIN, service): default_chain(service, protocol)}
        case ("intentions", dict(decided)):
            return {mesh.INTENTIONS: tuple(Intention(pair[0], pair[1], action) for pair, action in decided.items())}
        case ("names", frozenset() as names):
            return {mesh.SERVICE_NAMES: names}
        case ("default", bool(allow)):
            return {mesh.DEFAULT_ALLOW: allow}
        case ("entries", str(service), str(upstream), timeout):
            overrides = {upstream: UpstreamSettings(connect_timeout_ms=7)} if timeout else None
            said = ProxySettings(upstream_overrides=overrides)
            return {mesh.CONFIG_ENTRIES: ConfigEntries(service_defaults={service: said})}
    raise AssertionError(change)


def connected(bench: Bench) -> Bench:
    for service in NAMES:
        bench.leaf(service)
        bench.connect(service)
    return bench


@pytest.fixture(autouse=True, scope="module")
def small_slices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_queue, "AT_ONCE", 1)
        patch.setattr(work_queue, "SLICE", 1)
        yield


def test_a_name_known_only_from_an_intention_is_removed_with_it() -> None:
    bench = connected(Bench())
    changes: list[tuple[object, ...]] = [
        ("names", frozenset({"api"})),
        ("instances", "api", 0, 1),
        ("chain", "api", "tcp"),
        ("intentions", {("*", "web"): Action.DENY}),
        ("instances", "web", 1, 1),
        ("chain", "web", "tcp"),
        ("intentions", {}),
    ]
    for change in changes:
        bench.plane.apply(make(change))
    api = next(proxy for proxy in bench.plane.proxies() if proxy.service == "api")
    assert "vip:240.0.0.1" not in api.names(CLUSTER)


def test_reads_before_a_new_assignment_use_the_old_view() -> None:
    waiting: list[Callable[[], None]] = []
    bench = connected(Bench(default_allow=False, soon=waiting.append))
    proxy = next(proxy for proxy in bench.plane.proxies() if proxy.service == "web")
    state = proxy.session.state(CLUSTER)
    state.asked = state.wildcard = True
    changes: list[tuple[object, ...]] = [
        ("names", frozenset(NAMES)),
        ("intentions", {("web", "api"): Action.ALLOW}),
        ("instances", "web", 1, 1),
        ("instances", "api", 0, 1),
    ]
    for change in changes:
        bench.plane.apply(make(change))
    while waiting:
        waiting.pop(0)()
    state.dirty.clear()
    bench.plane.apply(make(("intentions", {("web", "*"): Action.ALLOW, ("db", "*"): Action.ALLOW})))
    bench.plane.apply(make(("chain", "api", "tcp")))
    while waiting:
        waiting.pop(0)()
    assert proxy.get(CLUSTER, "vip:240.0.0.0") is not None
    assert "vip:240.0.0.0" in state.dirty


@settings(max_examples=250, deadline=None)
@given(changes=st.lists(CHANGE, min_size=1, max_size=12), late=st.booleans(), data=st.data())
def test_a_changed_plane_equals_a_new_one(changes: list[tuple[object, ...]], late: bool, data: st.DataObject) -> None:
    waiting: list[Callable[[], None]] = []
    bench = connected(Bench(soon=waiting.append, later=waiting.append) if late else Bench())
    for proxy in bench.plane.proxies():
        for type_url in (CLUSTER, SCOPED_ROUTE):
            proxy.session.state(type_url).asked = proxy.session.state(type_url).wildcard = True
    known: dict[Key, object] = {}
    believed: list[dict[tuple[str, str], object]] = [{} for _ in bench.plane.proxies()]

    def look() -> None:
        for proxy, has in zip(bench.plane.proxies(), believed, strict=True):
            for type_url in (CLUSTER, SCOPED_ROUTE):
                state = proxy.session.state(type_url)
                for name in state.dirty:
                    has[type_url, name] = proxy.get(type_url, name)
                state.dirty.clear()

    for change in changes:
        bench.plane.apply(make(change))
        known |= make(change)
        look()
        for _ in range(data.draw(st.integers(0, len(waiting)))):
            waiting.pop(0)()
            look()
    while waiting:
        waiting.pop(0)()
        look()
    fresh = Bench()
    fresh.plane.apply(known)
    connected(fresh)
    for now, new, has in zip(bench.plane.proxies(), fresh.plane.proxies(), believed, strict=True):
        for type_url in TYPES:
            expected = {name: new.get(type_url, name) for name in new.names(type_url)}
            assert {name: now.get(type_url, name) for name in now.names(type_url)} == expected
            assert {each.name: each for each in now.select(type_url, set(expected))} == expected
            if type_url in (CLUSTER, SCOPED_ROUTE):
                told = {name: each for (url, name), each in has.items() if url == type_url and each is not None}
                assert told == expected, "what was told of the changes comes to the same"


def test_the_needs_of_many_sidecars_of_one_service_are_read_although_processed_in_slices() -> None:
    waiting: list[Callable[[], None]] = []

    def settle() -> None:
        while waiting:
            waiting.pop(0)()

    bench = Bench(soon=waiting.append)
    bench.service("api", "240.0.0.2")
    for number in range(2 * work_queue.AT_ONCE):
        bench.connect("web", number)
    settle()
    bench.leaf("web")
    settle()
    assert bench.demand.services == {"web", "api"}
