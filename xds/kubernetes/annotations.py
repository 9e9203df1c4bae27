"""Annotations of pods: their names, forms and meaning, and what the annotations of one pod come to.

Names are those of Consul on Kubernetes, so that manifests need no change; ``docs/kubernetes.md`` has the table, which
is made from `ANNOTATIONS`. An annotation of the pod precedes a label of its namespace, which precedes the operator's
value. What Gossamer does not follow is a warning at admission.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xds.kubernetes.upstreams import UPSTREAMS, UpstreamError
from xds.kubernetes.values import (
    BOOLEAN,
    COUNT,
    NAME,
    NETWORKS,
    PORTS,
    QUANTITY,
    TAGS,
    USERS,
    WORDS,
    Form,
    Ports,
)  # fmt: skip

PREFIX = "consul.hashicorp.com/"
META_PREFIX = "service-meta-"
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
POD_NAME = "$POD_NAME"
"""Value that stands for the pod's name, in tags and meta."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation of a pod. ``name`` is without the prefix."""

    name: str
    form: Form
    meaning: str
    label: bool = False
    """Whether a label of this name on the namespace counts as well."""

    @property
    def key(self) -> str:
        """Return the name with the prefix."""
        return PREFIX + self.name


INJECT = Annotation("connect-inject", BOOLEAN, "whether the pod gets a sidecar")
TRANSPARENT = Annotation(
    "transparent-proxy", BOOLEAN, "whether the pod's connections are redirected into the sidecar", label=True
)
OVERWRITE_PROBES = Annotation(
    "transparent-proxy-overwrite-probes", BOOLEAN, "whether the sidecar answers the kubelet's HTTP and gRPC probes"
)
EXCLUDE_INBOUND = Annotation(
    "transparent-proxy-exclude-inbound-ports", PORTS, "ports that are reached past the sidecar"
)
EXCLUDE_OUTBOUND = Annotation(
    "transparent-proxy-exclude-outbound-ports", PORTS, "ports that are dialed past the sidecar"
)
EXCLUDE_NETWORKS = Annotation(
    "transparent-proxy-exclude-outbound-cidrs", NETWORKS, "networks that are dialed past the sidecar"
)
EXCLUDE_USERS = Annotation("transparent-proxy-exclude-uids", USERS, "users whose connections go past the sidecar")
DNS = Annotation("consul-dns", BOOLEAN, "whether the sidecar answers the pod's DNS queries", label=True)
SERVICE = Annotation("connect-service", NAME, "name in Consul; that of the Kubernetes Service otherwise")
SERVICE_PORT = Annotation("connect-service-port", PORTS, "port of the application; the first one counts")
SERVICE_UPSTREAMS = Annotation("connect-service-upstreams", UPSTREAMS, "explicit upstreams, at ports of loopback")
KUBERNETES_SERVICE = Annotation(
    "kubernetes-service", NAME, "the Service that registers the pod, where several select it"
)
TAGS_OF_SERVICE = Annotation("service-tags", TAGS, "tags of the service in Consul")
CPU_LIMIT = Annotation("sidecar-proxy-cpu-limit", QUANTITY, "CPU limit of the sidecar")
CPU_REQUEST = Annotation("sidecar-proxy-cpu-request", QUANTITY, "CPU request of the sidecar")
MEMORY_LIMIT = Annotation("sidecar-proxy-memory-limit", QUANTITY, "memory limit of the sidecar")
MEMORY_REQUEST = Annotation("sidecar-proxy-memory-request", QUANTITY, "memory request of the sidecar")
CONCURRENCY = Annotation("consul-envoy-proxy-concurrency", COUNT, "number of Envoy's worker threads")
EXTRA_ARGUMENTS = Annotation("envoy-extra-args", WORDS, "further arguments of Envoy")
GRACE_PERIOD = Annotation(
    "sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
    COUNT,
    "seconds for which a sidecar that is a regular container goes on after the pod is deleted",
)
NATIVE = Annotation(
    "enable-consul-dataplane-as-sidecar", BOOLEAN, "whether the sidecar is a native one (Kubernetes 1.29 or newer)"
)

ANNOTATIONS = (
    INJECT, TRANSPARENT, OVERWRITE_PROBES, EXCLUDE_INBOUND, EXCLUDE_OUTBOUND, EXCLUDE_NETWORKS, EXCLUDE_USERS, DNS,
    SERVICE, SERVICE_PORT, SERVICE_UPSTREAMS, KUBERNETES_SERVICE, TAGS_OF_SERVICE, CPU_LIMIT, CPU_REQUEST,
    MEMORY_LIMIT, MEMORY_REQUEST, CONCURRENCY, EXTRA_ARGUMENTS, GRACE_PERIOD, NATIVE,
)  # fmt: skip
INJECT_STATUS, MANAGED_BY, TRANSPARENT_STATUS = (
    PREFIX + name for name in ("connect-inject-status", "connect-inject-managed-by", "transparent-proxy-status")
)
_WRITTEN = frozenset({INJECT_STATUS, MANAGED_BY, TRANSPARENT_STATUS})
_KNOWN = {each.key for each in ANNOTATIONS} | _WRITTEN


class AnnotationError(Exception):
    """Annotations that can't be used; the message names each, its value, and what was expected."""


def read(
    annotations: Mapping[str, str], ports: Ports, labels: Mapping[str, str] | None = None
) -> dict[Annotation, Any]:
    """Return the values of a pod's annotations, and of the labels of its namespace where the pod has none.

    Args:
        annotations: of the pod.
        ports: the named ports of its containers.
        labels: of its namespace.

    Raises:
        AnnotationError: some value does not have its form.
    """
    found: dict[Annotation, Any] = {}
    problems = []
    for annotation in ANNOTATIONS:
        what, given = "annotation", annotations.get(annotation.key)
        if given is None and annotation.label and labels is not None:
            what, given = "label of the namespace", labels.get(annotation.key)
        if given is None:
            continue
        try:
            found[annotation] = annotation.form.parse(given, ports)
        except UpstreamError as error:
            problems.append(f"{what} {annotation.key}: {error}")
        except ValueError:
            problems.append(f"{what} {annotation.key}: {given!r} is not {annotation.form.expected}")
    for key in annotations:
        if key.startswith(PREFIX + META_PREFIX) and not _META_KEY.fullmatch(key.removeprefix(PREFIX + META_PREFIX)):
            problems.append(f"annotation {key}: a key of meta has letters, digits, '-' and '_' only")
    if problems:
        raise AnnotationError("; ".join(problems))
    return found


def meta(annotations: Mapping[str, str], pod_name: str) -> dict[str, str]:
    """Return the service's metadata in Consul that annotations give (``service-meta-KEY``)."""
    start = PREFIX + META_PREFIX
    return {
        key.removeprefix(start): pod_name if value == POD_NAME else value
        for key, value in annotations.items()
        if key.startswith(start)
    }


def warnings(annotations: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each annotation with Consul's prefix that has no effect."""
    for key in annotations:
        if key.startswith(PREFIX) and key not in _KNOWN and not key.startswith(PREFIX + META_PREFIX):
            yield f"annotation {key} has no effect: Gossamer does not know it"
