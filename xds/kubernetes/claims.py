"""Decides which Kubernetes namespace has a service name of Consul, which knows no namespaces.

A pod of another namespace would otherwise become an instance of a service that another team owns, and get a share of
its callers' connections. Names are compared without case, as Consul does. The owner keeps a name until its Service is
deleted, whether it has pods or not. A name without an owner goes to a Service of that name before one whose pods take
the name by an annotation, and among equals to the one that was created first.
"""

from __future__ import annotations

from dataclasses import dataclass

ServiceKey = tuple[str, str]
"""Namespace and name of a Kubernetes Service."""


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Claim of a Kubernetes Service on a name; the least one is first in line."""

    by_annotation: bool
    since: str
    """Time at which the Service was created, ISO 8601."""
    service: ServiceKey


class Claims:
    """Claims of Services on service names of Consul."""

    def __init__(self) -> None:
        self._claims: dict[str, set[Claim]] = {}
        self._owners: dict[str, str] = {}

    def claim(self, name: str, service: ServiceKey, since: str) -> None:
        """Have a Service claim ``name``.

        Args:
            name: in Consul.
            service: the Kubernetes Service that registers the pods.
            since: time at which it was created, ISO 8601.
        """
        claim = Claim(service[1].lower() != name.lower(), since, service)
        self._claims.setdefault(name.lower(), set()).add(claim)

    def release(self, service: ServiceKey) -> bool:
        """Forget the claims of a Service that was deleted. Return whether some name has another owner now."""
        freed = False
        for name, claims in [*self._claims.items()]:
            left = {claim for claim in claims if claim.service != service}
            if left == claims:
                continue
            if left:
                self._claims[name] = left
            else:
                del self._claims[name]
            if not any(claim.service[0] == self._owners.get(name) for claim in left):
                freed |= self._owners.pop(name, None) is not None
        return freed

    def owner(self, name: str) -> str:
        """Return the namespace that has a service name; empty if none claims it. From then on it keeps the name."""
        key = name.lower()
        claims = self._claims.get(key)
        if not claims:
            return ""
        return self._owners.setdefault(key, min(claims).service[0])
