"""State machine of one proxy's xDS session: what it asked for, what it has, what to send next. No I/O, no clock, no
gRPC.

A `Session` takes the proxy's requests (`receive`) and the names of resources that changed (`changed`), and returns what
to send (`next_response`). The resources themselves are in a shared `ResourceView`; the session only remembers which of
them this proxy has. Delta and state of the world differ in few places, each of which asks for ``delta``; the rules hold
for both:

* At most one unacknowledged response for a type. Changes during that time are merged into the next response.
* Make before break: secrets and clusters, then endpoints, then what refers to them, removals last (xDS, "Eventual
  consistency considerations"). Listeners and routes wait until the clusters that they name are acknowledged, which
  Envoy does once they are warm; they wait for no others, so a denial never waits for an unrelated upstream. The same
  holds for an aggregate cluster, which Envoy uses at once: it follows its members, and its previous members are removed
  when it is acknowledged.
* Resources that a proxy brings along over a reconnect are not removed before everything that is meant for it has been
  read: a resource that a restarted control plane does not know yet may be in use. (Delta only; in state of the world a
  proxy does not say what it has.)
* A changed EDS cluster's endpoints follow it unasked: Envoy waits for them without asking again (issue 13009). Those of
  a new one follow it too, without a request. A subscription that crosses them is answered by them: the proxy reads them
  after it subscribed, since it has not acknowledged them yet. A later subscription is answered again, because the proxy
  has discarded them by then. (Delta only.)
* What Envoy rejected is never sent again. Envoy names the rejected resources of a listener or cluster response and
  accepts the others; where it names none, the resources of that response are sent once more one by one, and those that
  are rejected alone are the cause.
* A rejected cluster is removed, and so are rejected routes: an earlier version is outdated, and a cluster that is
  rejected while it warms keeps Envoy from acknowledging any further response about clusters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from xds.ads.messages import Received, Rejection, Request, Response
from xds.ads.outgoing import WILDCARD_TYPES, Outgoing
from xds.ads.state import TypeState
from xds.ads.wanted import MAKE_ORDER, ResourceView, Wanted
from xds.envoy.resource import CLUSTER, ENDPOINT, SCOPED_ROUTE, SECRET, TYPE_NAMES

WILDCARD = "*"
REFUSED_KEPT = 16
REMOVED_WHEN_REJECTED = frozenset({CLUSTER, SCOPED_ROUTE})
NAME_NONE = frozenset({ENDPOINT, SECRET})
"""Types whose resources name no clusters."""
PARTLY_TAKEN = "adding/updating"
"""Envoy's words when it accepted a response except for the resources that it names. Without them it accepted nothing of
it."""
UNCERTAIN = "?"
"""Version of a resource that the proxy has in an unknown version; equal to no other."""


MOST_NAMES = 200_000
"""Names that one proxy may have asked for, or brought along, of all types."""


class LimitError(Exception):
    """Request for more than any reasonable proxy needs; the message states the limit."""


class Session:
    """State machine of one stream. ``delta`` says which of the two variants of the protocol it speaks."""

    def __init__(self, view: ResourceView, *, delta: bool) -> None:
        self.delta = delta
        self._view = view
        self._wanted = Wanted(view)
        self._types = self._wanted.types
        self._outgoing = Outgoing(self._wanted, delta=delta)

    def state(self, type_url: str) -> TypeState:
        """Return what the proxy asked for and has of one type, for inspection."""
        return self._types[type_url]

    def next_response(self, most: int | None = None) -> Response | None:
        """Return the response to send now, which is then outstanding; see `Outgoing.next_response`."""
        return self._outgoing.next_response(most)

    def rejections(self) -> Iterator[Rejection]:
        """Yield what the proxy rejected of the resources that are meant for it now."""
        for type_url, state in self._types.items():
            for rejection in state.rejected.values():
                meant = self._view.get(type_url, rejection.name)
                if meant is not None and meant.version == rejection.version:
                    yield rejection

    @property
    def may_send(self) -> bool:
        """Whether it is worth asking for `next_response`; quick."""
        return bool(self._outgoing.open_types())

    @property
    def held_back(self) -> bool:
        """Whether the last `next_response` left something out because it is large."""
        return self._outgoing.held_back

    def receive(self, request: Request) -> Received:
        """Process a request: a subscription, an acknowledgement, a rejection, or several of these at once.

        Types that Gossamer does not serve are remembered nowhere and never answered.

        Raises:
            LimitError: it asks for too many names.
        """
        if request.type_url not in MAKE_ORDER:
            return Received()
        state = self._types[request.type_url]
        self._wanted.unsettled.add(request.type_url)
        received = self._acknowledge(state, request)
        if not state.asked:
            self._first_request(state, request)
        elif request.names is not None:
            self._replace_subscription(state, request)
        self._subscribe(state, request)
        if request.subscribe or request.names or request.initial_versions:
            self._check_names()
        return received

    def _check_names(self) -> None:
        names = sum(len(state.named) + len(state.inherited) for state in self._types.values())
        if names > MOST_NAMES:
            raise LimitError(f"{names} names were asked for on this stream; expected at most {MOST_NAMES}")

    def _first_request(self, state: TypeState, request: Request) -> None:
        state.asked = True
        # A proxy that kept its resources over a reconnect expects no first response; a new one does, even an empty one.
        state.answered = bool(request.initial_versions)
        wanted = request.subscribe if request.names is None else request.names
        self._bring_along(state, request.type_url, request.initial_versions)
        if request.type_url in WILDCARD_TYPES and not wanted:
            self._set_wildcard(state, request.type_url, wildcard=True)
        if request.names is not None:
            state.named.update(n for n in request.names if n != WILDCARD)
            state.dirty.update(state.named)
            if WILDCARD in request.names:
                self._set_wildcard(state, request.type_url, wildcard=True)

    def _bring_along(self, state: TypeState, type_url: str, known: Mapping[str, str]) -> None:
        """Store what the proxy states that it has. Most of a thousand proxies that reconnect at once have what they
        should."""
        if known:
            has, found = state.has, 0
            for resource in self._view.select(type_url, known):
                name, version = resource.name, resource.version
                found += 1
                if resource.of_all_upstreams:
                    state.inherited.add(name)
                if name in state.owed:
                    has[name] = UNCERTAIN
                    state.dirty.add(name)
                elif known[name] == version:
                    # Store the resource's own name and version: all sessions share these objects.
                    has[name] = version
                    if resource.clusters:
                        state.clusters[name] = resource.clusters
                else:
                    has[name] = known[name]
                    state.dirty.add(name)
            if found < len(known):
                strange = {name: version for name, version in known.items() if name not in has}
                state.inherited.update(strange)
                state.dirty.update(strange)
                has.update({name: UNCERTAIN if name in state.owed else version for name, version in strange.items()})
        state.owed.clear()
        if self._wanted.is_on_demand(type_url):
            state.dirty.update(known)  # some of it may be meant for the proxy only if it asks for it

    def _replace_subscription(self, state: TypeState, request: Request) -> None:
        if request.nonce and request.nonce != state.last_nonce:
            return  # It answers a response that a later one replaced, so its names are outdated too.
        names = set(request.names or ())
        legacy_wildcard = request.type_url in WILDCARD_TYPES and not names and state.wildcard
        self._set_wildcard(state, request.type_url, WILDCARD in names or legacy_wildcard)
        wanted = names - {WILDCARD}
        for name in state.named - wanted:
            self._forget(state, name)
        state.dirty.update(wanted - state.named)
        state.named = wanted

    def _subscribe(self, state: TypeState, request: Request) -> None:
        for name in request.unsubscribe:
            if name == WILDCARD:
                self._set_wildcard(state, request.type_url, wildcard=False)
            elif name in state.named:
                state.named.discard(name)
                self._forget(state, name)
        if not request.subscribe:
            return
        if WILDCARD in request.subscribe:
            self._set_wildcard(state, request.type_url, wildcard=True)
        named = {name for name in request.subscribe if name != WILDCARD}
        state.named |= named
        # A proxy that asks for a name does not have it, whatever was sent before, unless it states the version.
        fresh = named.difference(request.initial_versions)
        if state.ahead:
            if state.in_flight is not None:
                on_the_way = {resource.name for resource in state.in_flight.resources}
                fresh -= (state.ahead & on_the_way) - state.dirty
            state.ahead -= named
        for name in fresh:
            state.has.pop(name, None)
        state.dirty |= fresh
        if self._wanted.is_on_demand(request.type_url):
            for resource in self._view.select(CLUSTER, fresh):
                state.dirty.update(resource.clusters)  # the clusters that it needs are sent with it

    def _set_wildcard(self, state: TypeState, type_url: str, wildcard: bool) -> None:
        was, state.wildcard = state.wildcard, wildcard
        if wildcard and not was:
            state.dirty.update(name for name in self._view.names(type_url) if name not in state.has)
        elif was and not wildcard:
            for name in [n for n in state.has if n not in state.named]:
                self._forget(state, name)

    @staticmethod
    def _forget(state: TypeState, name: str) -> None:
        """Remove ``name`` from what the proxy wants; under a wildcard it still wants it."""
        if state.wildcard:
            return
        state.has.pop(name, None)
        state.good.pop(name, None)
        state.clusters.pop(name, None)
        state.dirty.discard(name)

    def _acknowledge(self, state: TypeState, request: Request) -> Received:
        response = state.in_flight
        if response is None or request.nonce != response.nonce:
            return Received()
        state.in_flight = None
        if state.ahead:
            unused = state.ahead - state.dirty
            state.ahead -= unused
            for name in unused:
                state.has.pop(name, None)
        if request.error is None:
            state.acknowledged += 1
            self._accepted(state, response)
            return Received(acknowledged=request.type_url)
        rejections = self._reject(state, response, request.error)
        return Received(rejections=rejections, unexplained=None if rejections else request.error)

    def _accepted(self, state: TypeState, response: Response) -> None:
        if self.delta and not state.rejected and response.type_url in NAME_NONE:
            return  # nothing has to be remembered of endpoints and secrets
        for resource in response.resources:
            name = resource.name
            if state.rejected and state.has.get(name) == resource.version:
                state.rejected.pop(name, None)
            if not self.delta:
                state.good[name] = resource
            if resource.clusters:
                state.clusters[name] = resource.clusters
            elif state.clusters:
                state.clusters.pop(name, None)

    def _reject(self, state: TypeState, response: Response, reason: str) -> tuple[Rejection, ...]:
        fresh = [r for r in response.resources if self.delta or state.good.get(r.name) != r]
        culprits = [r for r in fresh if _mentions(reason, r.name)] or (fresh if len(fresh) == 1 else [])
        rejections = tuple(Rejection(response.type_url, r.name, r.version, reason) for r in culprits)
        for rejection in rejections:
            state.rejected[rejection.name] = rejection
            refused = state.refused.setdefault(rejection.name, [])
            refused.append(rejection.version)
            del refused[:-REFUSED_KEPT]
            if response.type_url in REMOVED_WHEN_REJECTED:
                state.closed.add(rejection.name)
        others = [r for r in fresh if r not in culprits]
        if culprits and PARTLY_TAKEN in reason:
            if not self.delta:
                state.good.update({r.name: r for r in others})
        else:
            state.suspects.extend(r.name for r in others)
            state.has.update((r.name, UNCERTAIN) for r in others)
        if response.resources:
            # It is unknown whether the removals beside them were accepted; sending them again does no harm.
            state.has.update((name, UNCERTAIN) for name in response.removed)
            state.dirty.update(response.removed)
        return rejections

    def changed(self, type_url: str, names: Collection[str]) -> bool:
        """Mark resources that may differ from what the view held before: the next response looks at them.

        Returns:
            Whether any of them matters to the proxy.
        """
        state = self._types.get(type_url)
        if state is None or not state.asked:
            return False
        if self._wanted.is_on_demand(type_url):
            names = [n for n in names if n in state.has or self._wanted.wants(state, type_url, n)]
        elif not state.wildcard:
            names = [n for n in names if n in state.named or n in state.has]
        if not names:
            return False
        state.dirty.update(names)
        self._wanted.unsettled.add(type_url)
        if state.inherited:
            self._seen(state, type_url, names)
        return True

    def _seen(self, state: TypeState, type_url: str, names: Iterable[str]) -> None:
        """Note that the view's resources are no longer merely inherited, except for a listener that may lack what is
        not read yet."""
        for resource in self._view.select(type_url, [n for n in names if n in state.inherited]):
            if not resource.of_all_upstreams:
                state.inherited.discard(resource.name)


def describe(type_url: str) -> str:
    """Return a type's name for operators."""
    return TYPE_NAMES.get(type_url, type_url)


def _mentions(reason: str, name: str) -> bool:
    """Return whether Envoy's words name this resource, and not merely another whose name begins the same."""
    start = reason.find(name)
    while start != -1:
        end = start + len(name)
        before = reason[start - 1] if start else " "
        after = reason[end] if end < len(reason) else " "
        if not (before.isalnum() or before in "._-") and not (after.isalnum() or after in "_-"):
            return True
        start = reason.find(name, start + 1)
    return False
