"""One proxy's xDS session: what it asked for, what it has, and what to send next. No I/O, no clock, no gRPC.

A `Session` takes the proxy's requests (`receive`) and the names of resources that changed (`changed`), and answers
`next_response` whenever there is something to send. The resources themselves stay in a `ResourceView` that others
share; the session only remembers what this proxy has of them. Delta and state of the world differ in few places, each
of which asks for ``delta``; the rules hold for both:

* At most one unacknowledged response for a type. What changes meanwhile coalesces: acknowledgement is the clock.
* Make before break: secrets and clusters, then endpoints, then what refers to them, removals last (xDS, "Eventual
  consistency considerations"). Listeners and routes wait until the clusters that they name are acknowledged, which
  Envoy does once they are warm; they wait for no others, so a denial never queues behind somebody else's new upstream.
  So does a cluster that is made of others, which Envoy uses at once: it follows them, and what it was made of goes when
  its successor is acknowledged.
* What a proxy brings along over a reconnect is not taken from it before everything that is meant for it has been read:
  what a restarted control plane does not know yet may be in use. (Delta only; in state of the world a proxy does not
  say what it has.)
* A changed EDS cluster's endpoints follow it unasked: Envoy waits for them without asking again (issue 13009).
* What Envoy rejected is never sent again. Of a rejected listener or cluster response Envoy names the culprits and takes
  the others; where it does not say so, the resources of that response are tried once more one by one, and the one that
  is rejected alone is the culprit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Protocol

from xds.ads.messages import Received, Rejection, Request, Response
from xds.ads.state import TypeState
from xds.envoy.resource import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    SECRET,
    TYPE_NAMES,
    Resource,
)

WILDCARD = "*"
MAKE_ORDER = (SECRET, CLUSTER, ENDPOINT, EXTENSION, ROUTE, SCOPED_ROUTE, LISTENER)
"""The order in which resources are added and changed."""
BREAK_ORDER = (LISTENER, SCOPED_ROUTE, ROUTE, EXTENSION, CLUSTER, ENDPOINT, SECRET)
"""The order in which they are removed."""
REFERRING = (LISTENER, SCOPED_ROUTE, ROUTE, EXTENSION)
"""The types that name clusters, besides clusters that are made of others."""
FULL_STATE_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""The types whose state-of-the-world response lists everything, absence meaning removal (xDS specification; for routes,
Envoy)."""
WILDCARD_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""The types that an empty first subscription means everything for (xDS specification)."""
_name = attrgetter("name")
SORTED = 64
"""Up to so many resources are sent in the order of their names; of a thousand nobody asks that, and it takes long."""
REFUSED_KEPT = 16
PARTLY_TAKEN = "adding/updating"
"""In Envoy's words when it took a response but for the resources that it names. Otherwise it took nothing of it."""
UNCERTAIN = "?"
"""The version of a resource that the proxy has in some version or other; equal to none."""


class ResourceView(Protocol):
    """The resources meant for one proxy, always current."""

    def get(self, type_url: str, name: str) -> Resource | None:
        """The resource of that name, ``None`` where there is none."""

    def select(self, type_url: str, names: Collection[str]) -> list[Resource]:
        """Those of these resources that there are, in any order; what `get` says of each, for a thousand at a time."""

    def names(self, type_url: str) -> Iterable[str]:
        """Every name of that type that a wildcard stands for."""

    @property
    def on_demand(self) -> bool:
        """Whether clusters are sent to who asks for them by name, those of the proxy itself apart."""

    def asked_as(self, name: str) -> str | None:
        """On demand, the name by which a cluster has to be asked for; ``None`` where the wildcard stands for it."""

    def complete(self) -> bool:
        """Whether everything that is meant for the proxy has been read."""


class Session:
    """The state machine. ``delta`` says which of the two variants of the protocol the stream speaks."""

    def __init__(self, view: ResourceView, *, delta: bool) -> None:
        self._view = view
        self.delta = delta
        self._types: dict[str, TypeState] = {type_url: TypeState() for type_url in MAKE_ORDER}
        self._nonce = 0
        self._most: int | None = None
        self.held_back = False
        """Whether the last `next_response` left something out because it is large."""

    def state(self, type_url: str) -> TypeState:
        """What the proxy asked for and has of one type, for inspection."""
        return self._types[type_url]

    # -- what comes in ------------------------------------------------------------------------------------------

    def receive(self, request: Request) -> Received:
        """Take a request: a subscription, an acknowledgement, a rejection, or several of these at once.

        Types that Gossamer does not serve are remembered nowhere and never answered.
        """
        state = self._types.get(request.type_url)
        if state is None:
            return Received()
        received = self._acknowledge(state, request)
        if not state.asked:
            self._first_request(state, request)
        elif request.names is not None:
            self._replace_subscription(state, request)
        self._subscribe(state, request)
        return received

    def _first_request(self, state: TypeState, request: Request) -> None:
        state.asked = True
        # A proxy that kept its resources over a reconnect waits for no first answer; a fresh one does, even if empty.
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
        """Take over what the proxy says it has. A thousand that come back at once mostly have what they should."""
        found = {resource.name: resource for resource in self._view.select(type_url, known)}
        state.inherited = {n for n in known if n not in found or found[n].of_all_upstreams}
        # The names and versions that are kept are those of the resources, which all sessions share.
        state.has = {n: r.version for n, r in found.items() if known[n] == r.version and n not in state.owed}
        state.clusters.update((n, found[n].clusters) for n in state.has if found[n].clusters)
        for name, version in known.items():
            if name not in state.has:
                state.has[name] = UNCERTAIN if name in state.owed else version
                state.dirty.add(name)
        state.owed.clear()
        if self._is_on_demand(type_url):
            state.dirty.update(known)  # some of it may not be meant for it any more unless it asks

    def _replace_subscription(self, state: TypeState, request: Request) -> None:
        if request.nonce and request.nonce != state.last_nonce:
            return  # An answer to a response that a later one has overtaken: its names are overtaken too.
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
        # Asking for a name means not having it, whatever was sent before, unless the version comes along.
        fresh = named.difference(request.initial_versions)
        for name in fresh:
            state.has.pop(name, None)
        state.dirty |= fresh
        if self._is_on_demand(request.type_url):
            for resource in self._view.select(CLUSTER, fresh):
                state.dirty.update(resource.clusters)  # what it can't do without comes with it

    def _set_wildcard(self, state: TypeState, type_url: str, wildcard: bool) -> None:
        was, state.wildcard = state.wildcard, wildcard
        if wildcard and not was:
            state.dirty.update(name for name in self._view.names(type_url) if name not in state.has)
        elif was and not wildcard:
            for name in [n for n in state.has if n not in state.named]:
                self._forget(state, name)

    def _is_on_demand(self, type_url: str) -> bool:
        return type_url == CLUSTER and self._view.on_demand

    def _wants(self, state: TypeState, type_url: str, name: str) -> bool:
        if name in state.named:
            return True
        asked_as = self._view.asked_as(name) if self._is_on_demand(type_url) else None
        return state.wildcard if asked_as is None else asked_as in state.named

    @staticmethod
    def _forget(state: TypeState, name: str) -> None:
        """The proxy no longer wants ``name``; under a wildcard it still does."""
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
        if request.error is None:
            state.acknowledged += 1
            self._accepted(state, response)
            return Received(acknowledged=request.type_url)
        rejections = self._reject(state, response, request.error)
        return Received(rejections=rejections, unexplained=None if rejections else request.error)

    def _accepted(self, state: TypeState, response: Response) -> None:
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
        others = [r for r in fresh if r not in culprits]
        if culprits and PARTLY_TAKEN in reason:
            if not self.delta:
                state.good.update({r.name: r for r in others})
        else:
            state.suspects.extend(r.name for r in others)
            state.has.update((r.name, UNCERTAIN) for r in others)
        if response.resources:
            # Whether the removals beside them were taken can't be known; once more does no harm.
            state.has.update((name, UNCERTAIN) for name in response.removed)
            state.dirty.update(response.removed)
        return rejections

    def changed(self, type_url: str, names: Collection[str]) -> bool:
        """These resources may differ from what the view held before: look at them for the next response.

        Returns:
            Whether any of them matters to the proxy.
        """
        state = self._types[type_url]
        if not state.asked:
            return False
        if self._is_on_demand(type_url):
            names = [n for n in names if n in state.has or self._wants(state, type_url, n)]
        elif not state.wildcard:
            names = [n for n in names if n in state.named or n in state.has]
        state.dirty.update(names)
        if state.inherited:
            self._seen(state, type_url, names)
        return bool(names)

    def _seen(self, state: TypeState, type_url: str, names: Iterable[str]) -> None:
        """What the view holds is no longer merely inherited; but for a listener that may lack what is not read yet."""
        for resource in self._view.select(type_url, [n for n in names if n in state.inherited]):
            if not resource.of_all_upstreams:
                state.inherited.discard(resource.name)

    # -- what goes out ------------------------------------------------------------------------------------------

    def next_response(self, most: int | None = None) -> Response | None:
        """The response to send now, which is then outstanding; ``None`` when there is nothing to send.

        Args:
            most: leave out what takes a response of more resources than this. Of what is to be sent beside it, changes
                of what the proxy has go first: whoever has to wait for a large addition gets removals and denials
                meanwhile. `held_back` says whether anything was left out.
        """
        self.held_back = False
        self._most = most
        if any(state.inherited for state in self._types.values()) and self._view.complete():
            for state in self._types.values():
                state.inherited.clear()
        for order, attempt in ((MAKE_ORDER, self._make), (BREAK_ORDER, self._break)):
            for type_url in order:
                state = self._types[type_url]
                if not state.asked or state.in_flight is not None:
                    continue
                if state.dirty or state.suspects or not state.answered:
                    response = attempt(type_url)
                    if response is not None:
                        return response
        return None

    def _may_break(self, type_url: str) -> bool:
        """Whether resources of a type may be removed: not before what refers to them was replaced."""
        if type_url in REFERRING:
            return True
        referring = [(t, self._types[t]) for t in REFERRING]
        return not any(
            state.in_flight or ((state.dirty or state.suspects) and (self._pending(t) or self._gone(state, t)))
            for t, state in referring
        )

    def _what_it_names_is_there(self, resource: Resource) -> bool:
        """Whether the proxy has acknowledged what ``resource`` names; that of it that exists."""
        return self._are_there(CLUSTER, resource.clusters) and self._are_there(SCOPED_ROUTE, resource.routes)

    def _are_there(self, type_url: str, names: tuple[str, ...]) -> bool:
        state = self._types[type_url]
        if not names or not state.asked:
            return True
        on_the_way = self._on_the_way(state)
        return all(name not in on_the_way and self._to_send(state, type_url, name) is None for name in names)

    def _on_the_way(self, state: TypeState) -> frozenset[str]:
        """The names in the outstanding response that the proxy does not have yet."""
        response = state.in_flight
        if response is None:
            return frozenset()
        if state.flying is None or state.flying[0] is not response:
            fresh = (r.name for r in response.resources if self.delta or state.good.get(r.name) != r)
            state.flying = response, frozenset(fresh)
        return state.flying[1]

    def _pending(self, type_url: str) -> bool:
        """Whether something of this type is still to be added or changed, and not held back until all is read."""
        state = self._types[type_url]
        return bool(state.suspects) or any(
            not self._is_held(state, r) for r in self._all_to_send(state, type_url, state.dirty)
        )

    @staticmethod
    def _is_held(state: TypeState, resource: Resource) -> bool:
        return resource.of_all_upstreams and resource.name in state.inherited

    def _to_send(self, state: TypeState, type_url: str, name: str) -> Resource | None:
        resource = self._view.get(type_url, name)
        if resource is None or state.has.get(name) == resource.version or not self._wants(state, type_url, name):
            return None
        if resource.version in state.refused.get(name, ()):
            return None
        return resource

    def _all_to_send(self, state: TypeState, type_url: str, names: Collection[str]) -> list[Resource]:
        """`_to_send` of each of these names; for a thousand at a time."""
        has = state.has
        found = [r for r in self._view.select(type_url, names) if has.get(r.name) != r.version]
        if self._is_on_demand(type_url):
            found = [r for r in found if self._wants(state, type_url, r.name)]
        elif not state.wildcard:
            found = [r for r in found if r.name in state.named]
        if state.refused:
            found = [r for r in found if r.version not in state.refused.get(r.name, ())]
        return sorted(found, key=_name) if len(found) <= SORTED else found

    def _make(self, type_url: str) -> Response | None:
        state = self._types[type_url]
        names: Collection[str] = state.dirty
        large = self._most is not None and self.delta and len(names) > self._most
        if large:
            self.held_back = True
            names = self._dirty_of_had(state)
            if len(names) > (self._most or 0):
                return None
        found, waiting = self._next_suspect(state, type_url), False
        if not found:
            found = wanted = self._all_to_send(state, type_url, names)
            if type_url in REFERRING or any(r.clusters for r in wanted):
                found = [r for r in wanted if self._may_make(state, r)]
                waiting = len(found) < len(wanted)
        if large:
            return self._send(state, type_url, found, []) if found else None
        rest = len(state.dirty) > len(found)  # else there is nothing that could be gone
        removed = self._unknown_names(state, type_url) if self.delta and rest else []
        first = not state.answered and (type_url in WILDCARD_TYPES or not self.delta) and not waiting
        if not found and not removed and not first:
            if not waiting:
                self._settle(state, type_url)
            return None
        if rest and (self.delta or type_url in FULL_STATE_TYPES) and self._may_break(type_url):
            # In a message that goes out anyway, lest removals wait for ever behind additions that never end.
            removed += self._take_gone(state, type_url)
        return self._send(state, type_url, found, removed)

    def _may_make(self, state: TypeState, resource: Resource) -> bool:
        return not self._is_held(state, resource) and self._what_it_names_is_there(resource)

    def _next_suspect(self, state: TypeState, type_url: str) -> list[Resource]:
        for name in list(state.suspects):
            resource = self._to_send(state, type_url, name)
            if resource is None or self._may_make(state, resource):
                state.suspects.remove(name)
                if resource is not None:
                    return [resource]
        return []

    def _unknown_names(self, state: TypeState, type_url: str) -> list[str]:
        """Names that were asked for and do not exist: a delta client is told so once, rather than left waiting."""
        asked = [name for name in state.dirty if name in state.named and name not in state.has]
        there = {resource.name for resource in self._view.select(type_url, asked)} if asked else ()
        return sorted(name for name in asked if name not in there)

    def _settle(self, state: TypeState, type_url: str) -> None:
        """Drop the names from ``dirty`` that nothing is to be done about: neither to send nor to remove."""
        state.dirty = set(self._all_gone(state, type_url))

    @staticmethod
    def _dirty_of_had(state: TypeState) -> list[str]:
        """The dirty names of which the proxy has a resource."""
        has = state.has
        return [name for name in has.keys() & state.dirty if has[name]]

    def _all_gone(self, state: TypeState, type_url: str) -> list[str]:
        """Of the dirty names, what the proxy has and is not to have."""
        had = self._dirty_of_had(state)
        if not had:
            return []
        meant = {resource.name for resource in self._view.select(type_url, had)}
        if self._is_on_demand(type_url):
            meant = {name for name in meant if self._wants(state, type_url, name)}
        return [name for name in had if name not in meant]

    def _gone(self, state: TypeState, type_url: str) -> list[str]:
        gone = self._all_gone(state, type_url)
        kept = self._in_use(gone) if gone and type_url == CLUSTER else frozenset()
        return sorted(name for name in gone if name not in state.inherited and name not in kept)

    def _in_use(self, gone: Collection[str]) -> frozenset[str]:
        """The clusters that a proxy still uses.

        Because it rejected what would have replaced their users, or because they are what a cluster is made of that is
        not ``gone`` with them.
        """
        states = [self._types[type_url] for type_url in REFERRING]
        of_kept = {cluster for state in states for name in state.rejected for cluster in state.clusters.get(name, ())}
        made_of = self._types[CLUSTER].clusters
        if made_of:
            going = set(gone)
            of_kept.update(member for name, members in made_of.items() if name not in going for member in members)
        return frozenset(of_kept)

    def _take_gone(self, state: TypeState, type_url: str) -> list[str]:
        gone = self._gone(state, type_url)
        for name in gone:
            state.good.pop(name, None)
        return gone

    def _break(self, type_url: str) -> Response | None:
        state = self._types[type_url]
        if not state.dirty:
            return None
        most = self._most
        if most is not None and self.delta and len(state.dirty) > most and len(self._dirty_of_had(state)) > most:
            self.held_back = True
            return None
        gone = self._take_gone(state, type_url) if self._may_break(type_url) else []
        if not gone:
            return None
        if not self.delta and type_url not in FULL_STATE_TYPES:
            # State of the world has no word for this: the proxy drops it when it drops what refers to it.
            for name in gone:
                state.has.pop(name)
                state.dirty.discard(name)
            return None
        return self._send(state, type_url, [], gone)

    def _send(self, state: TypeState, type_url: str, resources: list[Resource], removed: list[str]) -> Response:
        if type_url == CLUSTER:
            for resource in resources:
                if resource.endpoints and resource.name in state.has:
                    self._resend(ENDPOINT, resource.endpoints)
        sent = {resource.name: resource.version for resource in resources}
        state.has.update(sent)
        state.dirty.difference_update(sent)
        for name in removed:
            if state.has.get(name):
                del state.has[name]
            if name in state.named:
                state.has[name] = ""
            state.rejected.pop(name, None)
            state.refused.pop(name, None)
            state.clusters.pop(name, None)
            state.dirty.discard(name)
        listed = resources if self.delta else self._whole(state, type_url, resources)
        self._nonce += 1
        state.sent += 1
        state.answered = True
        state.last_nonce = f"{self._nonce:x}"
        state.in_flight = Response(type_url, state.last_nonce, state.last_nonce, tuple(listed), tuple(removed))
        return state.in_flight

    @staticmethod
    def _whole(state: TypeState, type_url: str, resources: list[Resource]) -> list[Resource]:
        if type_url not in FULL_STATE_TYPES:
            return resources
        whole = {**state.good, **{r.name: r for r in resources}}
        return [whole[name] for name in sorted(whole)]

    def _resend(self, type_url: str, name: str) -> None:
        state = self._types[type_url]
        if not state.asked:
            state.owed.add(name)
        elif self._wants(state, type_url, name):
            state.has.pop(name, None)
            state.dirty.add(name)


def describe(type_url: str) -> str:
    """A type as an operator calls it."""
    return TYPE_NAMES.get(type_url, type_url)


def _mentions(reason: str, name: str) -> bool:
    """Whether Envoy's words name this resource, and not merely another whose name begins the same."""
    start = reason.find(name)
    while start != -1:
        end = start + len(name)
        before = reason[start - 1] if start else " "
        after = reason[end] if end < len(reason) else " "
        if not (before.isalnum() or before in "._-") and not (after.isalnum() or after in "_-"):
            return True
        start = reason.find(name, start + 1)
    return False
