"""Names that Consul gives to resources in Envoy (``agent/connect/sni.go``, ``uri_service.go``, ``agent/xds``).

Community Edition: namespace and partition are always ``default``.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass

from xds.mesh.facts import ANY_PORT, CONTROL_PLANE_SERVICE, VirtualAddress
from xds.mesh.names import fold, same_letters
from xds.mesh.spiffe import in_path, spiffe_id

TOKEN_METADATA = "x-consul-token"  # noqa: S105 - a key
"""gRPC metadata in which a sidecar presents its ACL token."""
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""Type of a cluster's HTTP options, and the key under which it has them."""
LEAF_SECRET = "leaf"  # noqa: S105 - the name of a secret, not a secret
ROOTS_SECRET = "roots"  # noqa: S105
LOCAL_APP = "local_app"
INBOUND_SCOPE = "inbound"
JWT_EXTENSION = "envoy.filters.http.jwt_authn"
"""Also the filter's name, under which the claims of tokens are kept."""
ORIGINAL_DESTINATION = "original-destination"


def service_cluster(service: str, datacenter: str, trust_domain: str, subset: str = "") -> str:
    """Return Consul's name for the cluster of a service or a subset of it, which is also the SNI that its sidecars
    expect."""
    return f"{subset + '.' if subset else ''}{service}.default.{datacenter}.internal.{trust_domain}"


def dialed(at: VirtualAddress) -> str:
    """Return the name by which the outbound listener finds the cluster, or the routes, of a connection to ``at``."""
    if at.port == ANY_PORT:
        return f"vip:{at.ip}"
    return f"vip:[{at.ip}]:{at.port}" if ":" in at.ip else f"vip:{at.ip}:{at.port}"


def requests_to(dialed: str) -> str:
    """Return the cluster of all requests to an HTTP upstream without routes, by the name under which it is dialed.

    It differs from the cluster of connections: while a service's protocol changes, both exist.
    """
    return f"http:{dialed}"


def address_of(name: str) -> VirtualAddress | None:
    """Return the address from which `dialed` made this name, ``None`` for other names."""
    if not name.startswith("vip:"):
        return None
    text, port = name.removeprefix("vip:"), ANY_PORT
    if text.startswith("[") or text.count(":") == 1:
        text, _, number = text.rpartition(":")
        text, port = text.strip("[]"), int(number)
    return VirtualAddress(text, port)


def failover_target(number: int, cluster: str) -> str:
    """Return the name of a member of an aggregate cluster."""
    return f"failover-target~{number}~{cluster}"


def asked_as(cluster: str) -> str:
    """Return the cluster that a proxy asks for when it needs this one: the aggregate that it is a member of, else
    itself."""
    return re.sub(r"^failover-target~\d+~", "", cluster)


DIALED_ADDRESS = "vip:%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
"""`dialed` for any port, in Envoy's command operators."""
DIALED_ADDRESS_AND_PORT = "vip:%DOWNSTREAM_LOCAL_ADDRESS%"
"""`dialed` for one port."""


def query_cluster(query: str, datacenter: str, trust_domain: str) -> str:
    """Return Consul's name for the cluster of a prepared query."""
    return f"{query}.default.{datacenter}.query.{trust_domain}"


def destination(address: str, service: str, datacenter: str, trust_domain: str) -> str:
    """Return Consul's name for a destination outside the mesh, which is also the SNI that its gateway expects."""
    dashed = re.sub(r"[.:]", "-", address)
    return f"destination.{dashed}.{service_cluster(service, datacenter, trust_domain)}"


def egress(host: str, port: int | str) -> str:
    """Return the name of the cluster of a host outside the mesh."""
    return f"egress:{host}:{port}"


def egress_scope(port: int | str) -> str:
    """Return the name of the routes of requests to hosts outside the mesh, at a port."""
    return f"egress:{port}"


EGRESS_HOST = egress("%REQUESTED_SERVER_NAME%", "%DOWNSTREAM_LOCAL_PORT%")
EGRESS_SCOPE = egress_scope("%DOWNSTREAM_LOCAL_PORT%")
"""Both in Envoy's command operators."""


@dataclass(frozen=True, slots=True)
class ControlPlaneIdentity:
    """Identity of a control plane with a certificate of the mesh."""

    trust_domain: str
    datacenter: str = ""
    """Empty where the datacenter of the control plane is not known: any is right."""

    def exact(self) -> str | None:
        """Return the SPIFFE ID, ``None`` where it is not known exactly."""
        return spiffe_id(CONTROL_PLANE_SERVICE, self.datacenter, self.trust_domain) if self.datacenter else None

    def pattern(self) -> str:
        """Return a regular expression that matches the whole of each SPIFFE ID that is right."""
        exact = self.exact()
        if exact is not None:
            return re.escape(exact)
        service = in_path(CONTROL_PLANE_SERVICE)
        return f"spiffe://{re.escape(self.trust_domain)}/ns/default/dc/{SEGMENT}+/svc/{service}"


SEGMENT = "[!-.0-~]"
"""A regular expression for one character of a segment of a SPIFFE ID: printable ASCII without the slash. Of all of
Unicode, as in ``[^/]``, RE2 would make a program ten times as large.
"""
ANY_SERVICE = f"{SEGMENT}+"


def spiffe_pattern(service_pattern: str, trust_domain: str) -> str:
    """Return a regular expression (RE2) for the identities, in any datacenter, of services whose name matches one."""
    return f"^spiffe://{re.escape(trust_domain)}/ns/default/dc/{SEGMENT}+/svc/{service_pattern}$"


def exact_pattern(service: str) -> str:
    """Return a regular expression for the name of one service in a SPIFFE ID, in this spelling alone."""
    return re.escape(in_path(service))


def any_spelling_pattern(service: str) -> str:
    """Return a regular expression for every name in a SPIFFE ID that Consul considers ``service``."""
    return "".join(map(_any_spelling, fold(service)))


@functools.lru_cache(maxsize=1 << 12)
def _any_spelling(character: str) -> str:
    return f"(?:{'|'.join(map(re.escape, encodings(character)))})"


@functools.lru_cache(maxsize=1 << 12)
def encodings(character: str) -> tuple[str, ...]:
    """Return every text that can represent a folded character in a SPIFFE ID, in any case and escaping.

    Characters are escaped first and compared then: the escaped form of a letter is not a case of that of another one.
    Consul escapes as Go does, but signs whatever escaping a request for a certificate has (``ConnectCAService.Sign``).
    """
    found = dict[str, None]()
    for each in same_letters(character):
        if each.isascii() and each != "%":
            found[each] = None
        escaped = "".join(f"%{byte:02X}" for byte in each.encode())
        digits = [sorted({digit, digit.lower()}) for digit in escaped]
        found.update(dict.fromkeys(map("".join, itertools.product(*digits))))
    return tuple(found)


def upstream_stat_prefix(service: str, datacenter: str) -> str:
    """Return the stat prefix of a listener for an upstream."""
    return f"upstream.{service}.default.default.{datacenter}"


def jwt_payload(provider: str) -> str:
    """Return the key under which the claims of a verified token are kept for later filters."""
    return f"jwt_payload_{provider}"


def jwks_cluster(provider: str) -> str:
    """Return the name of the cluster from which the keys of a JWT provider are fetched."""
    return f"jwks_cluster_{provider}"


def exposed_cluster(port: int, *, http2: bool) -> str:
    """Return the name of the cluster for the application's port with exposed paths."""
    return f"exposed_cluster_{port}{'_http2' if http2 else ''}"


def listener(base: str, address: str, port: int) -> str:
    """Return a listener's name. It contains the address, because Envoy can't move a listener to another address."""
    return f"{base}:{address}:{port}"
