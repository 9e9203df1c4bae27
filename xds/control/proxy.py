"""One connected proxy: its identity, what it waits for, the resources meant for it, and its session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from xds.ads.codec import Node
from xds.ads.messages import Rejection
from xds.ads.session import Session, describe
from xds.control.changes import Changes, differences
from xds.control.closed import closed_to_all
from xds.control.rejections import Rejections
from xds.control.service_view import ServiceView
from xds.control.sidecar_inputs import ExplicitTarget, SidecarInputs
from xds.control.sidecar_resources import OwnResources, own_resources
from xds.envoy.extensions import ExtensionError
from xds.envoy.names import address_of, asked_as
from xds.envoy.outbound import explicit_name
from xds.envoy.resource import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SCOPED_ROUTE, SECRET, Resource
from xds.envoy.routes import pointed_to, pointer
from xds.mesh.config_entries import ProxyMode
from xds.mesh.facts import Authorized, Leaf, LeafKey, Sidecar, StreamKey, StreamRefused

SERVED_TYPES = (CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SCOPED_ROUTE, SECRET)


@dataclass(frozen=True, slots=True)
class Client:
    """Client of a stream, as it introduced itself."""

    node: Node
    token: str = field(repr=False)
    peer: str
    delta: bool
    stream: str = ""
    """A number that no other stream has."""
    spiffe_ids: frozenset[str] = frozenset()
    """The SPIFFE IDs of its client certificate, which the server verified."""


def _without_stream(*_: object) -> None:
    """Do nothing, until a stream is attached."""


class Proxy:
    """Proxy on its stream. The control plane keeps it up to date, the server sends what its session returns.

    ``wake`` is called whenever the session may have something new to send.
    """

    def __init__(self, client: Client, view: ServiceView) -> None:
        self.client = client
        self.session = Session(self, delta=client.delta)
        self.wake: Callable[[], None] = _without_stream
        self.end: Callable[[str], None] = _without_stream
        """Ends its stream with a reason, which its Envoy logs."""
        self.refuse: Callable[[StreamRefused], None] = _without_stream
        """Ends its stream, because it may not act for its service."""
        self.sidecar: Sidecar | None = None
        self.registered = False
        self.leaf: Leaf | None = None
        """The last certificate that it was entitled to."""
        self.admitted: bool | None = None
        """Whether it may act for its service; ``None`` while that is not known. Found out anew for each stream."""
        self.certified = False
        """Whether its client certificate proves its service."""
        self.ready = False
        """Whether it is being served. Once served, it stays so."""
        self.blocker: str | None = "nothing has been read yet"
        """Reason why nothing can be sent at all, ``None`` if there is none."""
        self.as_of = -1
        """Number of its service's changes (``ControlPlane._changes``) when its own resources were made."""
        self._view = view
        self._patient = True
        self._waited_for = False
        """Whether the server has been woken because only upstreams are missing."""
        self._inputs: SidecarInputs | None = None
        self._own = OwnResources({})
        self._rejections = Rejections()

    @property
    def service(self) -> str:
        """Service whose traffic it carries."""
        return self.client.node.cluster

    def decide(self, answer: Authorized | StreamRefused) -> None:
        """Take the answer whether it may act for its service; end its stream where it may not."""
        admitted = isinstance(answer, Authorized)
        if admitted is self.admitted:
            return
        self.admitted = admitted
        if isinstance(answer, StreamRefused):
            self.refuse(answer)
        else:
            self.wake()

    @property
    def leaf_key(self) -> LeafKey:
        """The certificate it is entitled to ask for: its service's, with the token that it presented."""
        return LeafKey(self.service, "" if self.certified else self.client.token, self.certified)

    @property
    def stream_key(self) -> StreamKey:
        """Key under which its stream is authorized."""
        return StreamKey(LeafKey(self.service, self.client.token), self.client.stream)

    @property
    def transparent(self) -> bool:
        """Whether its application dials virtual IPs."""
        return self._inputs is not None and self._inputs.settings.mode is ProxyMode.TRANSPARENT

    # -- the resources meant for it (xds.ads.session.ResourceView) ------------------------------------------------

    def get(self, type_url: str, name: str) -> Resource | None:
        """Return the resource of that name that is meant for this proxy, ``None`` where there is none."""
        mine = self._own.resources.get(type_url, {}).get(name)
        if mine is not None or not self.transparent:
            return mine
        if type_url not in (SCOPED_ROUTE, ROUTE):
            return self._view.get(type_url, name)
        scope = self._view.get(SCOPED_ROUTE, name)
        return self._routes(type_url, scope) if scope is not None else None

    def select(self, type_url: str, names: Collection[str]) -> list[Resource]:
        """Return those of these resources that are meant for this proxy."""
        mine = self._own.resources.get(type_url, {})
        if not self.transparent:
            return [mine[name] for name in names if name in mine]
        if type_url in (SCOPED_ROUTE, ROUTE):
            scopes = self._view.select(SCOPED_ROUTE, names)
            found = [each for scope in scopes if (each := self._routes(type_url, scope)) is not None]
        else:
            found = self._view.select(type_url, names)
        if mine.keys().isdisjoint(names):
            return found
        return [mine[name] for name in names if name in mine] + [each for each in found if each.name not in mine]

    def _routes(self, type_url: str, scope: Resource) -> Resource | None:
        """Return a scope of an upstream, or with on-demand clusters one of its two parts: the scope, or the routes it
        points to."""
        asked_for = self.on_demand and address_of(scope.name) is not None
        if type_url == ROUTE:
            return pointed_to(scope) if asked_for else None
        return pointer(scope) if asked_for else scope

    def names(self, type_url: str) -> Iterable[str]:
        """Return the names of every resource of a type that is meant for this proxy."""
        mine = self._own.resources.get(type_url, {})
        if not self.transparent:
            return list(mine)
        if type_url == CLUSTER and self.on_demand:
            return [*mine, *self._view.egress.get(CLUSTER, ())]
        return [*mine, *self._view.names(type_url)]

    def complete(self) -> bool:
        """Return whether all of its upstreams have been read."""
        return not (self.transparent and not self._view.is_known()) and not self._unread_explicit()

    @property
    def on_demand(self) -> bool:
        """Whether it is sent the clusters of implicit upstreams when it asks for them by name."""
        return self._inputs is not None and self._inputs.on_demand

    def asked_as(self, name: str) -> str | None:
        """Return the name by which a cluster is requested on demand; ``None`` for clusters that it always has."""
        if name in self._own.resources.get(CLUSTER, {}) or name in self._view.egress.get(CLUSTER, {}):
            return None
        return asked_as(name)

    # -- what changes it ------------------------------------------------------------------------------------------

    def update(self, inputs: SidecarInputs) -> None:
        """Take new inputs for its own resources."""
        if inputs == self._inputs:
            return
        way = self.transparent, self.on_demand
        self._rejections.follow(inputs.settings, inputs.listeners_given())
        made = self._made(inputs)
        before, self._own, self._inputs = self._own, made, inputs
        self.changed(differences(before.resources, self._own.resources))
        if way != (self.transparent, self.on_demand):
            self.changed({type_url: set(self._view.names(type_url)) for type_url in SERVED_TYPES})

    def _made(self, inputs: SidecarInputs) -> OwnResources:
        """Return its own resources; where the newest policy can't be installed, no caller is admitted.

        An extension that is required and can't be applied leaves everything as it was, unless who may call differs.
        """
        try:
            return own_resources(inputs, self._rejections.left_out)
        except ExtensionError as error:
            if self._inputs is None:
                raise
            resources, problems = self._own.resources, (f"{error}; everything else stays as it was",)
            if inputs.admission != self._inputs.admission:
                resources = closed_to_all(
                    inputs.sidecar, inputs.settings, inputs.roots, resources, dual_stack=inputs.dual_stack
                )
                problems = (f"{error}; no caller is admitted, because the intentions changed meanwhile",)
            return OwnResources(resources, (*inputs.sidecar.problems, *inputs.problems, *problems))

    def rejected(self, rejections: Iterable[Rejection]) -> None:
        """Process rejections: its own resources are made again without the rejected parts."""
        if self._inputs is None:
            return
        current = [
            each
            for each in rejections
            if (mine := self._own.resources.get(each.type_url, {}).get(each.name)) and mine.version == each.version
        ]
        if self._rejections.rejected(current, self._inputs.parts()):
            before, self._own = self._own, self._made(self._inputs)
            self.changed(differences(before.resources, self._own.resources))

    def changed(self, changes: Changes) -> None:
        """Note that these of its resources may differ from what it has."""
        matters = [self.session.changed(type_url, names) for type_url, names in changes.items()]
        if SCOPED_ROUTE in changes:
            matters.append(self.session.changed(ROUTE, changes[SCOPED_ROUTE]))
        if self.ready and any(matters):
            self.wake()

    def resume(self, before: Proxy) -> None:
        """Take over the resources that were made for the same proxy on an earlier stream, if it is still entitled to
        them."""
        if before.client.node == self.client.node and before.client.token == self.client.token:
            self.sidecar, self.registered = before.sidecar, before.registered
            self._inputs, self._own, self.as_of = before._inputs, before._own, before.as_of
            self._rejections = before._rejections
            self.leaf = before.leaf

    def blocked_by(self, reason: str | None) -> bool:
        """Note the reason why it is not served, if any. Return whether it differs from the previous one."""
        news = reason != self.blocker
        self.blocker = reason
        self.settle()
        return news

    def settle(self) -> None:
        """Begin serving as soon as the first answer would be whole, or waiting for that has been given up."""
        if self.ready:
            if self.complete():
                self.wake()  # resources that waited until everything had been read can be sent now
        elif self.incomplete:
            self.ready = not self._patient or self.complete()
            if self.ready or not self._waited_for:
                self._waited_for = True
                self.wake()

    @property
    def waits_for_upstreams(self) -> bool:
        """Whether anything is held back until all upstreams have been read."""
        return self.transparent and not (self.ready and self.complete())

    def unread(self) -> list[str]:
        """Return the upstreams that have not been read yet; a first response without them would not be whole."""
        return sorted({*self._unread_explicit(), *(self._view.unknown() if self.transparent else ())})

    def _unread_explicit(self) -> list[str]:
        return [
            target.upstream.name for target in self._explicit() if target.upstream.refusal is None and target.unread
        ]

    def _explicit(self) -> tuple[ExplicitTarget, ...]:
        return self._inputs.explicit if self._inputs is not None else ()

    @property
    def incomplete(self) -> bool:
        """Whether only upstreams are missing from a whole first answer."""
        return not self.ready and self._inputs is not None and self.blocker is None

    def stop_waiting(self) -> None:
        """Serve what is known; upstreams that are read later follow."""
        self._patient = False
        self.settle()

    def own_problems(self) -> tuple[str, ...]:
        """Return the problems of its registration, and of the entries that are about its service."""
        return self._own.problems

    def problems(self) -> dict[str, list[str]]:
        """Return what was set aside, by upstream; the problems of its registration are under its own service."""
        found = dict(self._view.problems()) if self.transparent else {}
        if self._own.problems:
            found[self.service] = [*found.get(self.service, []), *self._own.problems]
        for each in self.session.rejections():
            owner = self._view.owner(each.type_url, each.name) if self.transparent else None
            text = f"Envoy rejected {describe(each.type_url)} {each.name!r}: {each.reason}"
            if owner is None:
                owner = self._explicit_owner(each.name)
            found[owner] = [*found.get(owner, []), text]
        return found

    def _explicit_owner(self, resource: str) -> str:
        """Return the explicit upstream that a resource belongs to, its own service where it is none's."""
        for target in self._explicit():
            if explicit_name(target.upstream) in resource:
                return target.upstream.name
        return self.service
