"""Resources that admit no caller, for a sidecar whose newest policy can't be installed."""

from __future__ import annotations

from xds.control.changes import ResourcesByType
from xds.envoy import names
from xds.envoy.inbound import Admission, inbound_routes, public
from xds.envoy.resource import LISTENER, SCOPED_ROUTE, Resource, encode
from xds.mesh.config_entries import MeshSettings, ProxySettings
from xds.mesh.facts import Roots, Sidecar
from xds.policy.intentions import DENIED, ConnectionPolicy, RequestPolicy
from xds.policy.listeners import public_address

NOBODY = Admission(ConnectionPolicy(allow=True), RequestPolicy(False, (), DENIED), {})


def closed_listener(
    sidecar: Sidecar, settings: ProxySettings, roots: Roots, name: str, *, dual_stack: bool
) -> Resource | None:
    """Return a public listener that admits no caller, in place of the one called ``name``; ``None`` for any other one.

    It contains nothing that a user gave.
    """
    address, port = public_address(sidecar, settings)
    if name != names.listener("public_listener", address, port):
        return None
    plain = ProxySettings(bind_address=address, bind_port=port)
    made = public(sidecar, plain, MeshSettings(), NOBODY, roots.trust_domain, dual_stack=dual_stack)
    return encode(LISTENER, made.name, made, clusters=(names.LOCAL_APP,))


def closed_to_all(
    sidecar: Sidecar, settings: ProxySettings, roots: Roots, resources: ResourcesByType, *, dual_stack: bool
) -> ResourcesByType:
    """Return ``resources`` with a listener that admits no caller, and routes that deny requests on established
    connections."""
    found = {type_url: dict(by_name) for type_url, by_name in resources.items()}
    for name in found.get(LISTENER, {}):
        closed = closed_listener(sidecar, settings, roots, name, dual_stack=dual_stack)
        if closed is not None:
            found[LISTENER][name] = closed
    if names.INBOUND_SCOPE in found.get(SCOPED_ROUTE, {}):
        found[SCOPED_ROUTE][names.INBOUND_SCOPE] = inbound_routes(settings, NOBODY, roots.trust_domain)
    return found
