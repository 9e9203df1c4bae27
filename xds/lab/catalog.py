"""Interface of the catalog that a lab's mesh is registered in: a real Consul, or a mesh file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Catalog(Protocol):
    """Operations of an operator on a mesh, and the arguments with which commands find it."""

    @property
    def transparent(self) -> bool:
        """Whether registrations can say that a sidecar is transparent; a Consul before 1.11 has stand-ins for that."""

    async def start(self) -> None:
        """Bring it up, empty."""

    async def close(self) -> None:
        """Take it down."""

    def serve_arguments(self) -> list[str]:
        """Return the arguments of ``gossamer serve`` for this catalog."""

    def lookup_arguments(self, node: str) -> list[str]:
        """Return the arguments of ``gossamer sidecar`` for a service that is registered on ``node``."""

    async def token_for(self, service: str) -> str:
        """Return a token that may act as this service only."""

    def credentials(self) -> dict[str, str]:
        """Return every token that exists or existed, by its purpose."""

    async def register(self, node: str, address: str, service: Mapping[str, Any]) -> None:
        """Register a service or a sidecar: Consul's JSON."""

    async def deregister(self, node: str, service_id: str) -> None:
        """Take it out again."""

    async def check(self, node: str, address: str, service_id: str, status: str) -> None:
        """Set the health of an instance: ``passing``, ``warning`` or ``critical``."""

    async def intention(self, source: str, destination: str, action: str | None) -> None:
        """Set an intention, or take it away with ``None``."""

    async def entry(self, entry: Mapping[str, Any]) -> None:
        """Write a config entry, in place of the one of its kind and name where there is one."""

    async def remove_entry(self, kind: str, name: str) -> None:
        """Take a config entry away."""

    async def virtual_ips(self, service: str) -> list[str]:
        """Return the virtual IPs of a service."""

    async def rotate_ca(self) -> None:
        """Make a new root certificate, which the old one vouches for."""
