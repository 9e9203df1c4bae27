"""Settings of injection that the operator gives: Helm values, as flags of ``gossamer kubernetes inject``."""

from __future__ import annotations

from dataclasses import dataclass, field

from xds.mesh.addresses import HostPort

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public"})
"""Namespaces whose pods never get a sidecar, as in Consul on Kubernetes."""
ENVOY_UID, INIT_UID = 5995, 5996
"""Users of the sidecar and, with a CNI plugin, of the init container, as in Consul on Kubernetes."""
PUBLIC_PORT, DNS_PORT = 20000, 8600


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Namespaces whose pods may be in the mesh."""

    allowed: frozenset[str] = frozenset({"*"})
    denied: frozenset[str] = frozenset()

    def serves(self, namespace: str) -> bool:
        """Return whether pods of ``namespace`` may be in the mesh: allowed, not denied, and not the system's."""
        if namespace in SYSTEM_NAMESPACES or namespace in self.denied:
            return False
        return "*" in self.allowed or namespace in self.allowed


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests and limits of a container, as quantities; ``None`` leaves one out."""

    cpu_limit: str | None = None
    cpu_request: str | None = None
    memory_limit: str | None = None
    memory_request: str | None = None

    def written(self) -> dict[str, dict[str, str]]:
        """Return the container's ``resources``."""
        limits = {"cpu": self.cpu_limit, "memory": self.memory_limit}
        requests = {"cpu": self.cpu_request, "memory": self.memory_request}
        found = {"limits": limits, "requests": requests}
        given = {what: {key: value for key, value in each.items() if value} for what, each in found.items()}
        return {what: each for what, each in given.items() if each}


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """Settings that the operator gives for all pods."""

    image: str
    consul: str
    """Consul's HTTP address, as pods reach it."""
    xds: tuple[HostPort, ...]
    """Addresses of Gossamer's xDS port, as pods reach it."""
    auth_method: str = ""
    """Consul's auth method with which pods log in; empty if Consul runs without ACLs."""
    plaintext: bool = False
    """Whether xDS is plain text."""
    inject: bool = False
    """Whether pods get a sidecar without an annotation."""
    transparent: bool = True
    overwrite_probes: bool = True
    dns: bool = False
    native: bool = True
    """Whether sidecars are native sidecar containers (Kubernetes 1.29 or newer)."""
    namespaces: Namespaces = Namespaces()
    concurrency: int = 2
    sidecar: Resources = field(default_factory=Resources)
    init: Resources = field(
        default_factory=lambda: Resources(cpu_request="50m", memory_request="25Mi", memory_limit="150Mi")
    )
    image_pull_policy: str = "IfNotPresent"
