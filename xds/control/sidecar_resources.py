"""Encodes what belongs to one sidecar only: its listeners, certificate, application, and explicit upstreams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from xds.control.changes import ResourcesByType
from xds.control.closed import NOBODY, closed_listener
from xds.control.rejections import LeftOut
from xds.control.sidecar_inputs import ExplicitTarget, SidecarInputs
from xds.envoy import clusters, jwt, names, outbound, routes, tls
from xds.envoy.clusters import Here
from xds.envoy.dns import dns_listener, unanswerable
from xds.envoy.exposed import exposed_clusters, exposed_listeners
from xds.envoy.extensions import INBOUND, OUTBOUND, ExtensionError, Extensions
from xds.envoy.inbound import inbound_routes, public
from xds.envoy.observe import Observation
from xds.envoy.overrides import OverrideError, cluster_from
from xds.envoy.resource import CLUSTER, EXTENSION, LISTENER, SCOPED_ROUTE, TYPE_NAMES, Resource, encode
from xds.envoy.upstreams import UpstreamEncoder
from xds.mesh.addresses import is_ip
from xds.mesh.config_entries import ProxyMode, ProxySettings
from xds.mesh.facts import Sidecar
from xds.mesh.http import HTTP_PROTOCOLS
from xds.outbound_port import OUTBOUND_LISTENER_PORT
from xds.policy.listeners import exposable, public_address

NOTHING_LEFT_OUT = LeftOut()


@dataclass(frozen=True, slots=True)
class OwnResources:
    """Resources of one sidecar alone, and the problems of its registration."""

    resources: ResourcesByType
    problems: tuple[str, ...] = ()


def own_resources(inputs: SidecarInputs, left_out: LeftOut = NOTHING_LEFT_OUT) -> OwnResources:
    """Encode the resources of ``inputs.sidecar`` alone.

    Args:
        inputs: what it is made of.
        left_out: what the proxy rejected.

    Raises:
        ExtensionError: a required extension can't be applied.
    """
    made: dict[str, dict[str, Resource]] = {}
    problems = [*inputs.sidecar.problems, *inputs.problems, *left_out.reasons]
    for resource in _own_resources(inputs.without(left_out.parts) if left_out.parts else inputs, problems.append):
        by_name = made.setdefault(resource.type_url, {})
        if resource.name in by_name:
            # The first one is generated: a listener of a user with the same name must not replace it.
            problems.append(f"{TYPE_NAMES[resource.type_url]} {resource.name!r}: there is one of this name already")
        else:
            by_name[resource.name] = resource
    for name in left_out.closed & made.get(LISTENER, {}).keys():
        closed = closed_listener(inputs.sidecar, inputs.settings, inputs.roots, name, dual_stack=inputs.dual_stack)
        if closed is not None:
            made[LISTENER][name] = closed
        else:
            del made[LISTENER][name]
    if left_out.without_tokens and EXTENSION in made:
        no_tokens = jwt.authentication(())
        made[EXTENSION][no_tokens.name] = no_tokens
    return OwnResources(made, tuple(dict.fromkeys(problems)))


def _own_resources(inputs: SidecarInputs, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings = inputs.sidecar, inputs.settings
    yield tls.leaf_secret(inputs.leaf)
    yield tls.roots_secret(inputs.roots)
    extensions = Extensions(settings.extensions or ())
    for each in extensions.problems:
        problem(each)
    yield from extensions.clusters()
    try:
        observation = Observation(settings, extensions)
    except OverrideError as error:
        problem(str(error))
        observation = Observation(ProxySettings(), extensions)
    wrong = _public_problem(sidecar, settings)
    if wrong is None:
        for resource in _inbound(inputs, observation, problem):
            patchable = resource.type_url in (CLUSTER, SCOPED_ROUTE)
            yield extensions.patched(resource, INBOUND) if patchable else resource
    else:
        problem(wrong)
    if settings.mode is ProxyMode.TRANSPARENT:
        port = settings.outbound_listener_port or OUTBOUND_LISTENER_PORT
        listed = dict(inputs.listed)
        listener = outbound.outbound(
            inputs.mesh_wide, port, listed, inputs.hosts,
            dual_stack=inputs.dual_stack, mode=inputs.clusters, on_demand=inputs.on_demand,
            max_request_headers_kb=settings.max_request_headers_kb,
        )  # fmt: skip
        named = outbound.outbound_clusters(inputs.mesh_wide, listed, inputs.hosts)
        scopes_named = outbound.outbound_routes(listed, inputs.hosts)
        yield observation.encode(listener, named, OUTBOUND, routes=scopes_named, of_all_upstreams=True)
        yield routes.by_address()  # always: when clusters are no longer on demand, scopes refer to it for a moment
        if not inputs.mesh_wide.destinations_only:
            yield clusters.original_destination(inputs.mesh_wide.passthrough_connect_timeout_ms)
        if inputs.dns_port:
            for service in unanswerable(inputs.named):
                problem(f"upstream {service!r} can't be a name in DNS; the sidecar does not answer for it")
            made = dns_listener(inputs.dns_port, inputs.named, inputs.here.datacenter, dual_stack=inputs.dual_stack)
            yield encode(LISTENER, made.name, made, of_all_upstreams=True)
    for target in inputs.explicit:

        def upstream_problem(text: str, name: str = target.upstream.name) -> None:
            problem(f"upstream {name!r}: {text}")

        for resource in _guarded(_explicit(target, inputs, observation, upstream_problem), upstream_problem):
            patchable = resource.type_url != LISTENER
            yield extensions.patched(resource, OUTBOUND, target.upstream.name) if patchable else resource


def _inbound(inputs: SidecarInputs, observation: Observation, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings, trust_domain = inputs.sidecar, inputs.settings, inputs.roots.trust_domain
    application = clusters.local_app(sidecar, settings)
    if settings.local_cluster_json:
        try:
            application = cluster_from("envoy_local_cluster_json", settings.local_cluster_json, application)
        except OverrideError as error:
            problem(f"{error}; the generated cluster is used")
    yield application
    if settings.protocol in HTTP_PROTOCOLS or settings.public_listener_json:
        providers = inputs.admission.used_providers()
        yield from jwt.key_clusters(providers)
        yield jwt.authentication(providers)
    admission = inputs.admission
    try:
        listener = public(sidecar, settings, inputs.mesh, admission, trust_domain, dual_stack=inputs.dual_stack)
    except OverrideError as error:
        # What the owner wanted the listener to do is unknown, so it admits no caller. Without any listener, requests on
        # established connections would be answered for as long as Envoy drains the old one.
        problem(f"{error}; it is refused: new connections and requests through the mesh are denied")
        admission = NOBODY
        settings = replace(settings, public_listener_json=None)
        listener = public(sidecar, settings, inputs.mesh, admission, trust_domain, dual_stack=inputs.dual_stack)
    scoped = (names.INBOUND_SCOPE,) if settings.protocol in HTTP_PROTOCOLS else ()
    if scoped:
        yield inbound_routes(settings, admission, trust_domain)
    yield observation.encode(listener, (names.LOCAL_APP,), INBOUND, routes=scoped)
    if settings.permissive_mtls and not inputs.mesh.allow_permissive_mtls:
        problem(
            "MutualTLSMode 'permissive' has no effect: the mesh entry does not say AllowEnablingPermissiveMutualTLS"
        )
    yield from _guarded(_exposed(inputs, observation, problem), problem)


def _guarded(resources: Iterator[Resource], problem: Callable[[str], None]) -> Iterator[Resource]:
    """Yield resources that are secondary; an error in them is reported and keeps nothing else from being updated."""
    try:
        made = list(resources)
    except ExtensionError:
        raise
    except Exception as error:
        problem(f"can't be turned into Envoy's configuration: {error!r}")
        return
    yield from made


def _exposed(inputs: SidecarInputs, observation: Observation, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings = inputs.sidecar, inputs.settings
    exposed, more = exposable(sidecar, settings)
    for each in more:
        problem(each)
    yield from exposed_clusters(sidecar, settings, exposed)
    for listener, named in exposed_listeners(sidecar, settings, exposed, inputs.mesh_wide.probe_sources):
        yield observation.encode(listener, named, INBOUND)


def _explicit(
    target: ExplicitTarget, inputs: SidecarInputs, observation: Observation, problem: Callable[[str], None]
) -> Iterator[Resource]:
    upstream, here, largest = target.upstream, inputs.here, inputs.settings.max_request_headers_kb
    encoder = _explicit_encoder(target, here)
    wrong = _explicit_problem(target, encoder)
    if wrong is not None:
        problem(wrong)
    if encoder is None or encoder.refusal() is not None or target.chain is None:
        return
    name = outbound.explicit_name(upstream)
    settings, protocol = upstream.settings, target.chain.protocol
    if settings.listener_json and (protocol in HTTP_PROTOCOLS or not target.chain.is_default):
        problem("envoy_listener_json is only for a service without routes, and of TCP; the generated listener is used")
        upstream = target.without_listener().upstream
    if upstream.settings.listener_json:
        # Users name the cluster in such a listener as Consul does.
        name = encoder.consul_name()
    try:
        listener = outbound.explicit(upstream, protocol, here.datacenter, max_request_headers_kb=largest)
    except OverrideError as error:
        problem(f"{error}; the generated listener is used")
        name, upstream = outbound.explicit_name(upstream), target.without_listener().upstream
        listener = outbound.explicit(upstream, protocol, here.datacenter, max_request_headers_kb=largest)
    yield from encoder.resources([name])
    for each in (*encoder.problems, *target.problems):
        problem(each)
    http = protocol in HTTP_PROTOCOLS
    yield observation.encode(listener, () if http else (name,), OUTBOUND, routes=(name,) if http else ())


def _public_problem(sidecar: Sidecar, settings: ProxySettings) -> str | None:
    address, port = public_address(sidecar, settings)
    if not is_ip(address):
        return f"the public listener can't bind {address!r}: not an IP address; set bind_address in Proxy.Config"
    if not 0 < port < 65536:
        return f"the public listener can't bind port {port}: expected 1 to 65535"
    if sidecar.local_service_socket_path:
        return None
    if not is_ip(sidecar.local_service_address):
        return f"LocalServiceAddress {sidecar.local_service_address!r} is not an IP address"
    if not 0 < sidecar.local_service_port < 65536:
        return f"LocalServicePort {sidecar.local_service_port} is not between 1 and 65535"
    return None


def _explicit_encoder(target: ExplicitTarget, here: Here) -> UpstreamEncoder | None:
    """Return the encoder of an explicit upstream, ``None`` while it has not been read or if it can't be served."""
    if target.upstream.refusal is not None or target.chain is None or target.unread:
        return None
    instances = dict(target.instances)
    owner = outbound.explicit_name(target.upstream)
    return UpstreamEncoder(target.chain, target.upstream.settings, here, lambda each: instances.get(each, ()), owner)


def _explicit_problem(target: ExplicitTarget, encoder: UpstreamEncoder | None) -> str | None:
    if target.upstream.refusal is not None:
        return target.upstream.refusal
    if encoder is None:
        return "not read from Consul yet"
    refusal = encoder.refusal()
    if refusal is not None:
        return refusal
    if not any(instances for _, instances in target.instances):
        return "has no instances; connections to it are refused until one is registered"
    return None
