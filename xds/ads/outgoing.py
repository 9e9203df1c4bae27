"""Chooses what to send a proxy next: the resources that it should have and has not, in an order without interruptions.

The rules are described in `xds.ads.session`, of which this is the sending half.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter

from xds.ads.messages import Response
from xds.ads.state import TypeState
from xds.ads.wanted import MAKE_ORDER, Wanted
from xds.envoy.resource import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SCOPED_ROUTE, SECRET, Resource

BREAK_ORDER = (LISTENER, SCOPED_ROUTE, ROUTE, EXTENSION, CLUSTER, ENDPOINT, SECRET)
"""Order in which resources are removed."""
REFERRING = (LISTENER, SCOPED_ROUTE, ROUTE, EXTENSION)
"""Types that name clusters, besides aggregate clusters."""
FULL_STATE_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""Types whose state-of-the-world response lists everything; what is absent is removed (xDS specification; for routes,
Envoy)."""
WILDCARD_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""Types for which an empty first subscription means all resources (xDS specification)."""
_name = attrgetter("name")
SORTED = 64
"""Sort small responses only; sorting large ones is slow."""


class Outgoing:
    """Sending half of a session. It changes the state of what the proxy has."""

    def __init__(self, wanted: Wanted, *, delta: bool) -> None:
        self._wanted = wanted
        self._view = wanted.view
        self._types = wanted.types
        self._unsettled = wanted.unsettled
        self._delta = delta
        self._nonce = 0
        self._most: int | None = None
        self.held_back = False
        """Whether the last `next_response` left something out because it is large."""

    def next_response(self, most: int | None = None) -> Response | None:
        """Return the response to send now, which is then outstanding, or ``None`` when there is nothing to send.

        Args:
            most: omit responses with more resources than this. Among the others, changes of what the proxy has are
            first: a proxy that waits for a large addition is sent removals and denials meanwhile. `held_back` says
            whether anything was left out.
        """
        self.held_back = False
        self._most = most
        for type_url in self._unsettled:
            state = self._types[type_url]
            if state.inherited and self._view.complete():
                state.inherited.clear()
        open_to_more = self.open_types()
        if not open_to_more:
            return None
        for order, attempt in ((MAKE_ORDER, self._make), (BREAK_ORDER, self._break)):
            for type_url in order:
                if type_url in open_to_more:
                    response = attempt(type_url)
                    if response is not None:
                        return response
        return None

    def open_types(self) -> list[str]:
        """Return the types of which there may be something to send now."""
        found = []
        for type_url in tuple(self._unsettled):
            state = self._types[type_url]
            if state.dirty or state.suspects or state.closed or not state.answered:
                if state.asked and state.in_flight is None:
                    found.append(type_url)
            elif not state.inherited:
                self._unsettled.discard(type_url)
        return found

    def _may_break(self, type_url: str) -> bool:
        """Return whether resources of a type may be removed: not before what refers to them was replaced."""
        if type_url in REFERRING:
            return True
        referring = [(t, self._types[t]) for t in REFERRING if t in self._types]
        return not any(
            state.in_flight or ((state.dirty or state.suspects) and (self._pending(t) or self._gone(state, t)))
            for t, state in referring
        )

    def _what_it_names_is_there(self, resource: Resource) -> bool:
        """Return whether the proxy has acknowledged the existing resources that ``resource`` names."""
        return self._are_there(CLUSTER, resource.clusters) and self._are_there(SCOPED_ROUTE, resource.routes)

    def _are_there(self, type_url: str, names: tuple[str, ...]) -> bool:
        state = self._types.get(type_url) if names else None
        if state is None or not state.asked:
            return True
        on_the_way = self._on_the_way(state)
        return all(name not in on_the_way and self._to_send(state, type_url, name) is None for name in names)

    def _on_the_way(self, state: TypeState) -> frozenset[str]:
        """Return the names in the outstanding response that the proxy does not have yet."""
        response = state.in_flight
        if response is None:
            return frozenset()
        if state.flying is None or state.flying[0] is not response:
            fresh = (r.name for r in response.resources if self._delta or state.good.get(r.name) != r)
            state.flying = response, frozenset(fresh)
        return state.flying[1]

    def _pending(self, type_url: str) -> bool:
        """Return whether some of this type is still to be added or changed, and does not wait until all is read."""
        state = self._types[type_url]
        return bool(state.suspects) or any(
            not self._is_held(state, r) for r in self._all_to_send(state, type_url, state.dirty)
        )

    @staticmethod
    def _is_held(state: TypeState, resource: Resource) -> bool:
        return resource.of_all_upstreams and resource.name in state.inherited

    def _to_send(self, state: TypeState, type_url: str, name: str) -> Resource | None:
        resource = self._view.get(type_url, name)
        if resource is None or state.has.get(name) == resource.version or not self._wanted.wants(state, type_url, name):
            return None
        if resource.version in state.refused.get(name, ()):
            return None
        return resource

    def _all_to_send(self, state: TypeState, type_url: str, names: Collection[str]) -> list[Resource]:
        """Return `_to_send` of each of these names, quickly for a thousand of them."""
        has = state.has
        found = [r for r in self._view.select(type_url, names) if has.get(r.name) != r.version]
        if self._wanted.is_on_demand(type_url):
            found = [r for r in found if self._wanted.wants(state, type_url, r.name)]
        elif not state.wildcard:
            found = [r for r in found if r.name in state.named or r.name in state.ahead]
        if state.refused:
            found = [r for r in found if r.version not in state.refused.get(r.name, ())]
        return sorted(found, key=_name) if len(found) <= SORTED else found

    def _make(self, type_url: str) -> Response | None:
        state = self._types[type_url]
        if state.closed:
            # Removed whatever refers to it: the proxy lacks the resource, or has an outdated version.
            return self._send(state, type_url, [], sorted(state.closed))
        names: Collection[str] = state.dirty
        large = self._most is not None and self._delta and len(names) > self._most
        if large:
            self.held_back = True
            names = self._dirty_of_had(state)
            if len(names) > (self._most or 0):
                return None
        found, waiting = self._next_suspect(state, type_url) if state.suspects else [], False
        if not found:
            found = wanted = self._all_to_send(state, type_url, names)
            if type_url in REFERRING or (type_url == CLUSTER and any(r.clusters for r in wanted)):
                found = [r for r in wanted if self._may_make(state, r)]
                waiting = len(found) < len(wanted)
        if large:
            return self._send(state, type_url, found, []) if found else None
        rest = len(state.dirty) > len(found)  # otherwise nothing can be gone
        removed = self._unknown_names(state, type_url) if self._delta and rest else []
        first = not state.answered and (type_url in WILDCARD_TYPES or not self._delta) and not waiting
        if not found and not removed and not first:
            if not waiting:
                self._settle(state, type_url)
            return None
        if rest and (self._delta or type_url in FULL_STATE_TYPES) and self._may_break(type_url):
            # Removals go into a message that is sent anyway, so that they never wait for an endless series of
            # additions.
            removed += self._pop_gone(state, type_url)
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
        """Return the names that were asked for and do not exist; a delta client is sent them once, so that it stops
        waiting."""
        asked = [name for name in state.dirty if name in state.named and name not in state.has]
        if not asked:
            return []
        existing = {resource.name for resource in self._view.select(type_url, asked)}
        return sorted(set(asked) - existing)

    def _settle(self, state: TypeState, type_url: str) -> None:
        """Drop the names from ``dirty`` that nothing is to be done about: neither to send nor to remove."""
        state.dirty = set(self._all_gone(state, type_url))

    @staticmethod
    def _dirty_of_had(state: TypeState) -> list[str]:
        """Return the dirty names of which the proxy has a resource."""
        has = state.has
        return [name for name in has.keys() & state.dirty if has[name]]

    def _all_gone(self, state: TypeState, type_url: str) -> list[str]:
        """Return the dirty names that the proxy has and should not have."""
        had = self._dirty_of_had(state)
        if not had:
            return []
        meant = {resource.name for resource in self._view.select(type_url, had)}
        if self._wanted.is_on_demand(type_url):
            meant = {name for name in meant if self._wanted.wants(state, type_url, name)}
        return [name for name in had if name not in meant]

    def _gone(self, state: TypeState, type_url: str) -> list[str]:
        gone = self._all_gone(state, type_url)
        kept = self._in_use(gone) if gone and type_url == CLUSTER else frozenset()
        return sorted(name for name in gone if name not in state.inherited and name not in kept)

    def _in_use(self, gone: Collection[str]) -> frozenset[str]:
        """Return the clusters that a proxy still uses.

        Either it rejected the resources that would have replaced their users, or they are members of an aggregate that
        is not ``gone`` with them.
        """
        states = [self._types[type_url] for type_url in REFERRING if type_url in self._types]
        of_kept = {cluster for state in states for name in state.rejected for cluster in state.clusters.get(name, ())}
        made_of = self._types[CLUSTER].clusters
        if made_of:
            going = set(gone)
            of_kept.update(member for name, members in made_of.items() if name not in going for member in members)
        return frozenset(of_kept)

    def _pop_gone(self, state: TypeState, type_url: str) -> list[str]:
        gone = self._gone(state, type_url)
        for name in gone:
            state.good.pop(name, None)
        return gone

    def _break(self, type_url: str) -> Response | None:
        state = self._types[type_url]
        if not state.dirty:
            return None
        most = self._most
        if most is not None and self._delta and len(state.dirty) > most and len(self._dirty_of_had(state)) > most:
            self.held_back = True
            return None
        gone = self._pop_gone(state, type_url) if self._may_break(type_url) else []
        if not gone:
            return None
        if not self._delta and type_url not in FULL_STATE_TYPES:
            # The state-of-the-world protocol can't express this: the proxy drops it with what refers to it.
            for name in gone:
                state.has.pop(name)
                state.dirty.discard(name)
            return None
        return self._send(state, type_url, [], gone)

    def _send(self, state: TypeState, type_url: str, resources: list[Resource], removed: list[str]) -> Response:
        if type_url == CLUSTER:
            for resource in resources:
                if resource.endpoints:
                    self._endpoints_follow(resource, is_new=not state.has.get(resource.name))
        sent = {resource.name: resource.version for resource in resources}
        state.has.update(sent)
        state.dirty.difference_update(sent)
        for name in removed:
            if state.has.get(name):
                del state.has[name]
            if name in state.named:
                state.has[name] = ""
            state.clusters.pop(name, None)
            if name in state.closed:
                state.good.pop(name, None)  # its current version still has to be sent, if it differs
                continue
            state.rejected.pop(name, None)
            state.refused.pop(name, None)
            state.dirty.discard(name)
        state.closed.clear()
        listed = resources if self._delta else self._whole(state, type_url, resources)
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

    def _endpoints_follow(self, cluster: Resource, *, is_new: bool) -> None:
        """Ensure that the endpoints of a cluster that is being sent follow it.

        Envoy does not request those of a changed cluster. It requests those of a new one when it has read the cluster,
        which is before it reads what follows, so it need not wait for a response. That holds for an Envoy that has
        requested endpoints before. Another one may not even acknowledge them, and a starting one has its own order.
        """
        name, state = cluster.endpoints, self._types[ENDPOINT]
        self._unsettled.add(ENDPOINT)
        if name in state.named:
            state.has.pop(name, None)
            state.dirty.add(name)
        elif not state.asked:
            if not is_new:
                state.owed.add(name)
        elif is_new and self._delta:
            state.ahead.add(name)
            state.dirty.add(name)
