"""Writes a mesh file as a lab's catalog, as an operator would with an editor."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xds.lab.commands import gossamer
from xds.lab.processes import eventually, run_to_end
from xds.sources.export import service_definition
from xds.sources.file.settings import FileSettings
from xds.sources.file.state import StateFolder


class MeshFile:
    """A mesh file in ``folder``, with a token for every service."""

    transparent = True

    def __init__(self, folder: Path, default_policy: str) -> None:
        self.settings = FileSettings.resolve(folder / "mesh.yaml", None)
        self._default_policy = default_policy
        self.services: dict[str, dict[str, Any]] = {}
        """The definitions in the file, by service ID."""
        self._intentions: dict[str, dict[str, str]] = {}
        self._entries: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._tokens: dict[str, str] = {}

    async def start(self) -> None:
        """Write it, empty."""
        self.write()

    async def close(self) -> None:
        """Do nothing: the file is removed with its folder."""

    def serve_arguments(self) -> list[str]:
        """Return the arguments of ``gossamer serve`` for this catalog."""
        return ["--mesh", str(self.settings.mesh)]

    def lookup_arguments(self, node: str) -> list[str]:  # noqa: ARG002 - a file knows no nodes
        """Return the arguments of ``gossamer sidecar`` for this catalog."""
        return ["--mesh", str(self.settings.mesh)]

    async def token_for(self, service: str) -> str:
        """Return the token of a service."""
        return self._tokens.setdefault(service, str(uuid.uuid4()))

    def credentials(self) -> dict[str, str]:
        """Return every token that exists, by its purpose."""
        named = {f"the token of {each['id']}": each["token"] for each in self.services.values() if "token" in each}
        return named | {f"the token of {service}": token for service, token in self._tokens.items()}

    def give_token(self, service_id: str) -> None:
        """Give a service a token of its own, as every one needs where others can connect."""
        self.services[service_id]["token"] = str(uuid.uuid4())
        self.write()

    async def register(self, node: str, address: str, service: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Put a service or a sidecar into the file."""
        definition = service_definition(service, service.get("Address") or address)
        name = definition.get("proxy", {}).get("destination_service_name")
        if name:
            definition["token"] = await self.token_for(name)
        self.services[definition["id"]] = definition
        self.write()

    async def deregister(self, node: str, service_id: str) -> None:  # noqa: ARG002
        """Take it out again."""
        self.services.pop(service_id, None)
        self.write()

    async def check(self, node: str, address: str, service_id: str, status: str) -> None:  # noqa: ARG002
        """Set the health of an instance."""
        self.services[service_id]["check"] = {"name": "health", "ttl": "1h", "status": status}
        self.write()

    async def intention(self, source: str, destination: str, action: str | None) -> None:
        """Set an intention, or take it away with ``None``."""
        sources = self._intentions.setdefault(destination, {})
        sources.pop(source, None)
        if action is not None:
            sources[source] = action
        self.write()

    async def entry(self, entry: Mapping[str, Any]) -> None:
        """Write a config entry, in place of the one of its kind and name where there is one."""
        self._entries[entry["Kind"], entry.get("Name", "mesh")] = entry
        self.write()

    async def remove_entry(self, kind: str, name: str) -> None:
        """Take a config entry away."""
        self._entries.pop((kind, name), None)
        self.write()

    async def virtual_ips(self, service: str) -> list[str]:
        """Return the virtual IPs of a service: those in the file, otherwise the one that it was assigned."""
        registered = [
            each["tagged_addresses"]["virtual"]["address"]
            for each in self.services.values()
            if each.get("proxy", {}).get("destination_service_name") == service and "tagged_addresses" in each
        ]
        if registered:
            return registered
        folder = StateFolder(self.settings.state)

        async def given() -> str | None:
            return (await asyncio.to_thread(folder.virtual_ips)).by_service.get(service)

        return [str(await eventually(f"a virtual IP for {service}", given))]

    async def rotate_ca(self) -> None:
        """Rotate its certificate authority as an operator would."""
        await run_to_end(*gossamer("ca", "rotate", "--mesh", str(self.settings.mesh)))

    def write(self) -> None:
        """Write the file as editors do: the new one takes the old one's place."""
        entries: list[dict[str, Any]] = [
            {
                "Kind": "service-intentions",
                "Name": destination,
                "Sources": [{"Name": name, "Action": action} for name, action in sources.items()],
            }
            for destination, sources in self._intentions.items()
            if sources and ("service-intentions", destination) not in self._entries
        ]
        entries += [dict(entry) for entry in self._entries.values()]
        data = {
            "default_intention_policy": self._default_policy,
            "services": list(self.services.values()),
            "config_entries": {"bootstrap": entries},
        }
        new = self.settings.mesh.with_suffix(".new")
        new.write_text(yaml.safe_dump(data, sort_keys=False))
        new.replace(self.settings.mesh)
