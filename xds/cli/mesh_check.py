"""Encodes a mesh file for every sidecar without serving it, to find what would be set aside.

The facts go through the same control plane that serves, with stand-ins for certificates, which only a running mesh has.
So everything that ``/v1/sidecars`` would set aside is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator

from xds.ads.codec import Node
from xds.control.plane import ControlPlane
from xds.control.proxy import Client
from xds.control.upstreams import UpstreamCatalog
from xds.mesh.config_entries import UpstreamSettings
from xds.mesh.facts import Authorized, Leaf, LeafKey, Roots, StreamKey
from xds.mesh.mesh import Key, Kind
from xds.metrics import Metrics
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.upstreams import Candidates
from xds.sources.file.facts import FileFacts
from xds.sources.file.virtual_ips import Given

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
"""Trust domain as long as a real one."""


def set_aside(facts: FileFacts, given: Given) -> Iterator[tuple[str, str]]:
    """Yield what can't be followed of a mesh: the service that it is about, and why.

    Args:
        facts: of the mesh.
        given: the virtual IPs that were given to services that name none.
    """
    mesh_wide = MeshWideSettings()
    plane = ControlPlane(mesh_wide, lambda _: None, Metrics(), lambda then: then(), lambda then: then())
    plane.apply(_everything(facts, given))
    catalog = UpstreamCatalog(plane.mesh, mesh_wide)
    catalog.candidates = Candidates(facts.service_names, facts.entries.chain_names)
    upstreams = sorted(catalog.candidates.names & {*facts.instances, *facts.made})
    for service in upstreams:
        catalog.refresh(service)
    for service in upstreams:
        yield from ((service, problem) for problem in catalog.get(service, UpstreamSettings()).problems)
    for service, found in facts.instances.items():
        for instance in found.instances:
            if instance.sidecar is not None:
                node = Node(instance.service_id, service, "", "")
                proxy = plane.attach(Client(node, "", "", True, instance.service_id))
                if proxy.blocker is not None:
                    yield service, proxy.blocker
                yield from ((service, problem) for problem in proxy.own_problems())


def _everything(facts: FileFacts, given: Given) -> dict[Key, object]:
    batch = facts.base(Roots(TRUST_DOMAIN, ("",)))
    for service in {*facts.instances, *facts.made, *facts.service_names}:
        batch |= facts.service(service, given)
    for service, instances in facts.instances.items():
        batch[Key(Kind.LEAF, LeafKey(service, ""))] = Leaf(service, "", "")
        for instance in instances.instances:
            batch[Key(Kind.STREAM, StreamKey(LeafKey(service, ""), instance.service_id))] = Authorized()
    return batch
