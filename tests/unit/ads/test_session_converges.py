"""Whatever order things happen in, a proxy ends up with what is meant for it.

A model of Envoy talks to a `Session`: it subscribes, acknowledges, rejects some versions whenever it sees them, drops
the stream and comes back with what it has, while resources come, change and go. In the end it must hold exactly what
is meant for it, except for what it rejects, and nothing it rejected may have been sent to it again and again. A cluster
that is made of others is never sent before them.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.ads.test_session import View
from xds.ads.messages import Request, Response
from xds.ads.outgoing import FULL_STATE_TYPES
from xds.ads.session import Session
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, Resource

NAMES = ["a", "b", "c"]
TYPES = [CLUSTER, ENDPOINT, LISTENER]
WILDCARD = [CLUSTER, LISTENER]


class SessionAndEnvoy(RuleBasedStateMachine):
    """The model. ``delta`` and ``names_culprits`` are set by the subclasses below."""

    delta = True
    names_culprits = True

    def __init__(self) -> None:
        super().__init__()
        self.view = View()
        self.counter = 0
        self.poison: set[tuple[str, str]] = set()
        self.held: dict[str, dict[str, str]] = {t: {} for t in TYPES}
        self.connect()

    def connect(self) -> None:
        self.session = Session(self.view, delta=self.delta)
        self.waiting: list[Response] = []
        self.sent_poison: Counter[tuple[str, str, str]] = Counter()
        self.wants_endpoints: set[str] = set()
        self.nonce = dict.fromkeys(TYPES, "")
        if not self.delta:
            # State of the world has no way to say what a proxy has: it gets everything again.
            self.held[ENDPOINT] = {}
        for type_url in WILDCARD:
            known = dict(self.held[type_url]) if self.delta else {}
            self.session.receive(Request(type_url, initial_versions=known, names=None if self.delta else ()))
        self.subscribe_to_endpoints(self.held[CLUSTER].keys(), first=True)

    def subscribe_to_endpoints(self, names: object, *, first: bool = False) -> None:
        wanted = set(names)  # type: ignore[call-overload]
        new, old = wanted - self.wants_endpoints, self.wants_endpoints - wanted
        self.wants_endpoints = wanted
        if not (new or old):
            return
        for name in old:
            self.held[ENDPOINT].pop(name, None)
        if self.delta:
            known = {n: v for n, v in self.held[ENDPOINT].items() if n in new} if first else {}
            request = Request(
                ENDPOINT, subscribe=tuple(sorted(new)), unsubscribe=tuple(sorted(old)), initial_versions=known
            )
        else:
            request = Request(ENDPOINT, nonce=self.nonce[ENDPOINT], names=tuple(sorted(wanted)))
        self.session.receive(request)

    def pump(self) -> None:
        # As the server does, which asks for a response only where there may be one.
        while self.session.may_send and (response := self.session.next_response()) is not None:
            self.waiting.append(response)
            for resource in response.resources:
                key = (resource.type_url, resource.name, resource.version)
                if resource.clusters and self.held[CLUSTER].get(resource.name) != resource.version:
                    self.its_members_are_there(resource)
                if key[::2] in self.poison and self.held[resource.type_url].get(resource.name) != resource.version:
                    self.sent_poison[key] += 1

    def its_members_are_there(self, whole: Resource) -> None:
        for name in whole.clusters:
            member = self.view.get(CLUSTER, name)
            rejected = member is not None and (CLUSTER, member.version) in self.poison
            assert member is None or rejected or self.held[CLUSTER].get(name) == member.version

    # -- what happens in the mesh -----------------------------------------------------------------------------------

    @rule(type_url=st.sampled_from(TYPES), name=st.sampled_from(NAMES), bad=st.integers(0, 4), whole=st.booleans())
    def change(self, type_url: str, name: str, bad: int, whole: bool) -> None:
        self.counter += 1
        version = str(self.counter)
        if bad == 0:
            self.poison.add((type_url, version))
        endpoints = name if type_url == CLUSTER else ""
        whole = whole and type_url == CLUSTER and name == "c"
        made_of = tuple(n for n in ("a", "b") if self.view.get(CLUSTER, n)) if whole else ()
        self.view.resources[type_url][name] = Resource(type_url, name, version, b"", endpoints, made_of)
        self.session.changed(type_url, [name])

    @rule(type_url=st.sampled_from(TYPES), name=st.sampled_from(NAMES))
    def remove(self, type_url: str, name: str) -> None:
        whole = self.view.get(CLUSTER, "c")
        if type_url == CLUSTER and whole is not None and name in whole.clusters:
            self.change(CLUSTER, "c", 1, whole=False)  # nothing is made of what there is not
        if self.view.resources[type_url].pop(name, None):
            self.session.changed(type_url, [name])

    # -- what the proxy does ----------------------------------------------------------------------------------------

    @rule()
    def look(self) -> None:
        self.pump()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.take(self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @rule()
    def reconnect(self) -> None:
        self.connect()

    def take(self, response: Response) -> None:
        type_url = response.type_url
        held = self.held[type_url]
        fresh = [r for r in response.resources if held.get(r.name) != r.version]
        culprits = [r for r in fresh if (type_url, r.version) in self.poison]
        if not self.delta and type_url in FULL_STATE_TYPES:
            listed = {r.name for r in response.resources}
            for name in [n for n in held if n not in listed]:
                del held[name]
        if culprits and not self.names_culprits and len(response.resources) > 1:
            words = "something is wrong"
        else:
            words = "; ".join(f"Error adding/updating: {r.name}: wrong" for r in culprits)
            good = {r.name: r.version for r in response.resources if r not in culprits}
            if self.delta and type_url == ENDPOINT:
                # What it has not asked for it throws away.
                good = {name: version for name, version in good.items() if name in self.wants_endpoints}
            held.update(good)
            for name in response.removed:
                held.pop(name, None)
        self.nonce[type_url] = response.nonce
        names: tuple[str, ...] | None = None
        if not self.delta:
            names = tuple(sorted(self.wants_endpoints)) if type_url == ENDPOINT else ()
        self.session.receive(Request(type_url, response.nonce, error=words or None, names=names))
        if type_url == CLUSTER:
            self.subscribe_to_endpoints(held.keys())

    # -- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def at_most_one_response_a_type_is_out(self) -> None:
        assert all(n == 1 for n in Counter(r.type_url for r in self.waiting).values())

    @invariant()
    def what_was_rejected_is_not_sent_again(self) -> None:
        allowed = 1 if self.names_culprits else 2
        assert all(n <= allowed for n in self.sent_poison.values()), self.sent_poison

    def teardown(self) -> None:
        for _ in range(300):
            self.pump()
            if not self.waiting:
                break
            self.take(self.waiting.pop(0))
        else:
            pytest.fail("the session goes on for ever")
        for type_url in TYPES:
            wanted = self.wants_endpoints if type_url == ENDPOINT else set(NAMES)
            for name in wanted:
                resource = self.view.get(type_url, name)
                has = self.held[type_url].get(name)
                if resource is None:
                    # State of the world can't take endpoints back; they go with their cluster.
                    assert (
                        has is None or (not self.delta and type_url == ENDPOINT) or self.may_be_in_use(type_url, name)
                    )
                elif (type_url, resource.version) not in self.poison:
                    assert has == resource.version, f"{name} of {type_url}: has {has}, meant {resource.version}"

    def may_be_in_use(self, type_url: str, name: str) -> bool:
        """Whether "c" may still be made of it, because what it is now was rejected."""
        whole = self.view.get(CLUSTER, "c")
        return type_url == CLUSTER and name != "c" and whole is not None and (CLUSTER, whole.version) in self.poison


class DeltaNamingCulprits(SessionAndEnvoy):
    pass


class DeltaNotNamingCulprits(SessionAndEnvoy):
    names_culprits = False


class StateOfTheWorldNamingCulprits(SessionAndEnvoy):
    delta = False


class StateOfTheWorldNotNamingCulprits(SessionAndEnvoy):
    delta = False
    names_culprits = False


LIMITS = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDeltaNamingCulprits = DeltaNamingCulprits.TestCase
TestDeltaNotNamingCulprits = DeltaNotNamingCulprits.TestCase
TestStateOfTheWorldNamingCulprits = StateOfTheWorldNamingCulprits.TestCase
TestStateOfTheWorldNotNamingCulprits = StateOfTheWorldNotNamingCulprits.TestCase
for _case in (
    TestDeltaNamingCulprits,
    TestDeltaNotNamingCulprits,
    TestStateOfTheWorldNamingCulprits,
    TestStateOfTheWorldNotNamingCulprits,
):
    _case.settings = LIMITS
