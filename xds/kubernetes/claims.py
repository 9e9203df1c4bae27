"""Decides which Kubernetes namespace has a service name of Consul, which knows no namespaces.

A pod of another namespace would otherwise become an instance of a service that another team owns, and get a share of
its callers' connections. The namespace whose Service was created first has the name, for as long as a pod claims it.
"""

from __future__ import annotations

from collections.abc import Iterable

Pod = tuple[str, str]
"""Namespace and name of a pod."""


class Claims:
    """Claims of pods on service names."""

    def __init__(self) -> None:
        self._by_service: dict[str, dict[Pod, str]] = {}
        self._by_pod: dict[Pod, str] = {}

    def claim(self, pod: Pod, service: str, since: str) -> Iterable[Pod]:
        """Have ``pod`` claim ``service``, or none for an empty name, in place of what it claimed.

        Args:
            pod: who claims it.
            service: its name.
            since: time at which the pod's Kubernetes Service was created, ISO 8601.

        Returns:
            The pods for which the owner of their service is another one now.
        """
        before = self._by_pod.get(pod, "")
        names = {name for name in (before, service) if name}
        owners = {name: self.owner(name) for name in names}
        if before:
            del self._by_service[before][pod]
            del self._by_pod[pod]
            if not self._by_service[before]:
                del self._by_service[before]
        if service:
            self._by_service.setdefault(service, {})[pod] = since
            self._by_pod[pod] = service
        moved = [name for name in names if self.owner(name) != owners[name]]
        return [each for name in moved for each in self._by_service.get(name, ()) if each != pod]

    def owner(self, service: str) -> str:
        """Return the namespace that has a service name; empty if none claims it."""
        claims = self._by_service.get(service)
        if not claims:
            return ""
        namespace, _ = min(claims, key=lambda pod: (claims[pod], pod))
        return namespace
