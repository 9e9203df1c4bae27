"""Mesh files for tests."""

from __future__ import annotations

from typing import Any

import yaml

from xds.sources.file.document import Document, parse


def service(name: str, number: int = 1, token: str = "", **more: Any) -> dict[str, Any]:
    """Return a service with a transparent sidecar, at an address of its own."""
    return {
        "name": name,
        "id": f"{name}-{number}",
        "address": f"10.{sum(name.encode()) % 200}.0.{number}",
        "port": 8080,
        "connect": {"sidecar_service": {"port": 20000, "proxy": {"mode": "transparent"}}},
        **({"token": token} if token else {}),
        **more,
    }


def intentions(destination: str, **sources: str) -> dict[str, Any]:
    """Return the intentions of a service: ``allow`` or ``deny`` by name."""
    listed = [{"Name": name.replace("anyone", "*"), "Action": action} for name, action in sources.items()]
    return {"Kind": "service-intentions", "Name": destination, "Sources": listed}


def mesh(*services: dict[str, Any], entries: list[dict[str, Any]] | None = None, policy: str = "deny") -> str:
    """Return the text of a mesh file."""
    data: dict[str, Any] = {"default_intention_policy": policy, "services": list(services)}
    if entries:
        data["config_entries"] = {"bootstrap": entries}
    return yaml.safe_dump(data, sort_keys=False)


def document(*services: dict[str, Any], entries: list[dict[str, Any]] | None = None, policy: str = "deny") -> Document:
    """Return a parsed mesh file."""
    return parse("mesh.yaml", mesh(*services, entries=entries, policy=policy))
