"""Models of a mesh file: a typed part of a Consul agent's configuration.

``services`` holds what ``consul services register`` accepts, ``config_entries.bootstrap`` what ``consul config write``
accepts, each in Consul's own spelling only, so that Consul accepts everything that is accepted here. A field that
Consul has and Gossamer does not follow is accepted; one that Consul does not have is refused. The JSON Schema that
editors complete the file by is made of these models.

Sources: Consul, "Service definition reference" and "Configuration entries"; what Consul 1.16 accepts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from xds.sources.file.models.chains import ServiceResolver, ServiceRouter, ServiceSplitter
from xds.sources.file.models.defaults import MeshEntry, ProxyDefaults, ServiceDefaults, TerminatingGateway
from xds.sources.file.models.intentions import JWTProvider, ServiceIntentions, SourceIntention
from xds.sources.file.models.services import VIRTUAL_TAGS, Check, Proxy, Service, ServiceBase, Upstream
from xds.sources.file.models.values import Exact, Name

__all__ = [
    "VIRTUAL_TAGS", "Check", "Entry", "MeshFile", "OtherEntry", "Proxy", "ProxyDefaults", "ServiceBase",
    "ServiceDefaults", "ServiceIntentions", "ServiceResolver", "ServiceRouter", "ServiceSplitter", "SourceIntention",
    "TerminatingGateway", "Upstream", "json_schema",
]  # fmt: skip


class OtherEntry(BaseModel):
    """Config entry of a kind that Gossamer does not follow yet, whatever its fields."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    Kind: Literal[
        "ingress-gateway", "exported-services",
        "api-gateway", "bound-api-gateway", "http-route", "tcp-route", "inline-certificate", "sameness-group",
        "control-plane-request-limit",
    ]  # fmt: skip
    Name: Name


Entry = Annotated[
    ServiceIntentions
    | ServiceDefaults
    | ProxyDefaults
    | MeshEntry
    | ServiceRouter
    | ServiceSplitter
    | ServiceResolver
    | JWTProvider
    | TerminatingGateway
    | OtherEntry,
    Field(discriminator="Kind"),
]


class ConfigEntries(Exact):
    """The config entries."""

    bootstrap: list[Entry] = []
    """Config entries, as ``consul config write`` takes them: intentions, defaults, the mesh entry."""


class MeshFile(Exact):
    """A mesh: services, intentions, defaults, virtual IPs."""

    model_config = ConfigDict(title="Gossamer mesh file")

    datacenter: str = Field("dc1", pattern="^[A-Za-z0-9_-]+$")
    default_intention_policy: Literal["allow", "deny"]
    """Default where no intention matches."""
    services: list[Service]
    """Services and sidecars, as ``consul services register`` takes them."""
    config_entries: ConfigEntries = ConfigEntries()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a mesh file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MeshFile.model_json_schema()}
