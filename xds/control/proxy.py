"""One connected proxy: who it is, what it waits for, what is meant for it, and its session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from xds.ads.codec import Node
from xds.ads.session import Session
from xds.control.views import Changes, OwnResources, ServiceView, SidecarInputs, differences, own_resources
from xds.envoy.resource import CLUSTER, ENDPOINT, EXTENSION, LISTENER, SCOPED_ROUTE, SECRET, Resource
from xds.mesh.facts import Leaf, LeafKey, Sidecar
from xds.mesh.settings import ProxyMode

SERVED_TYPES = (CLUSTER, ENDPOINT, EXTENSION, LISTENER, SCOPED_ROUTE, SECRET)


@dataclass(frozen=True, slots=True)
class Client:
    """A stream's other end, as it introduced itself."""

    node: Node
    token: str
    peer: str
    delta: bool


class Proxy:
    """A proxy on its stream. The control plane keeps it up to date, the server sends what its session says.

    ``wake`` is set whenever the session may have something new to send.
    """

    def __init__(self, client: Client, view: ServiceView) -> None:
        self.client = client
        self.session = Session(self, delta=client.delta)
        self.wake = asyncio.Event()
        self.sidecar: Sidecar | None = None
        self.registered = False
        self.leaf: Leaf | None = None
        """The last certificate that it was entitled to."""
        self.ready = False
        """Whether it is being served. Once it is, it stays so: what is known goes on serving."""
        self.blocker: str | None = "nothing has been read yet"
        """Why nothing can be sent at all, if so."""
        self._view = view
        self._patient = True
        self._inputs: SidecarInputs | None = None
        self._own = OwnResources({})

    @property
    def service(self) -> str:
        """The service whose traffic it carries."""
        return self.client.node.cluster

    @property
    def leaf_key(self) -> LeafKey:
        """The certificate it is entitled to ask for: its service's, with the token that it presented."""
        return LeafKey(self.service, self.client.token)

    @property
    def transparent(self) -> bool:
        """Whether its application dials virtual IPs."""
        return self._inputs is not None and self._inputs.settings.mode is ProxyMode.TRANSPARENT

    # -- the resources meant for it (xds.ads.session.ResourceView) ------------------------------------------------

    def get(self, type_url: str, name: str) -> Resource | None:
        """The resource of that name that is meant for this proxy."""
        mine = self._own.resources.get(type_url, {}).get(name)
        if mine is None and self.transparent:
            return self._view.resources.get(type_url, {}).get(name)
        return mine

    def names(self, type_url: str) -> Iterable[str]:
        """The names of every resource of a type that is meant for this proxy."""
        mine = self._own.resources.get(type_url, {})
        if not self.transparent:
            return list(mine)
        return [*mine, *self._view.resources.get(type_url, {})]

    def complete(self) -> bool:
        """Whether all of its upstreams have been read."""
        return not (self.transparent and self._view.unknown) and not self._unread_explicit()

    # -- what changes it ------------------------------------------------------------------------------------------

    def update(self, inputs: SidecarInputs) -> None:
        """Take new inputs for its own resources."""
        if inputs == self._inputs:
            return
        was_transparent = self.transparent
        made = own_resources(inputs)
        before, self._own, self._inputs = self._own, made, inputs
        self.changed(differences(before.resources, self._own.resources))
        if was_transparent != self.transparent:
            self.changed({type_url: set(names) for type_url, names in self._view.resources.items()})

    def changed(self, changes: Changes) -> None:
        """These of its resources may differ from what it has."""
        for type_url, names in changes.items():
            self.session.changed(type_url, names)
        self.wake.set()

    def blocked_by(self, reason: str | None) -> bool:
        """Note what keeps it from being served, if anything does; whether that is news."""
        news = reason != self.blocker
        self.blocker = reason
        self.settle()
        return news

    def settle(self) -> None:
        """Begin serving as soon as the first answer would be whole, or waiting for that has been given up."""
        if self.incomplete and not (self._patient and self.unread()):
            self.ready = True
        self.wake.set()

    def unread(self) -> list[str]:
        """The upstreams that have not been read yet; a first answer without them would not be whole."""
        return sorted({*self._unread_explicit(), *(self._view.unknown if self.transparent else ())})

    def _unread_explicit(self) -> list[str]:
        return [
            target.upstream.name
            for target in (self._inputs.explicit if self._inputs else ())
            if target.upstream.refusal is None and target.unread
        ]

    @property
    def incomplete(self) -> bool:
        """Whether only upstreams are missing from a whole first answer."""
        return not self.ready and self._inputs is not None and self.blocker is None

    def stop_waiting(self) -> None:
        """Serve what is known; upstreams that are read later follow then."""
        self._patient = False
        self.settle()

    def problems(self) -> dict[str, list[str]]:
        """What was set aside, by upstream; under its own service what of its registration can't be followed."""
        found = dict(self._view.problems()) if self.transparent else {}
        if self._own.problems:
            found[self.service] = [*found.get(self.service, []), *self._own.problems]
        return found
