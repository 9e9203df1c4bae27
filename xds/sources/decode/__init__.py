"""Decodes Consul's JSON into facts. What can't be followed becomes a sentence for the operator, never an exception."""

from __future__ import annotations

from xds.sources.decode.catalog import (
    BY_CONSUL,
    BY_FILE,
    CLAIMED,
    TERMINATING_GATEWAY,
    gateways,
    query_result,
    service_instances,
    sidecar,
)
from xds.sources.decode.certificates import agent_default_allow, leaf, roots
from xds.sources.decode.chains import chain
from xds.sources.decode.config_entries import EntryFacts, combined, config_entries, entry_facts
from xds.sources.decode.intentions import intention, intentions, ordered
from xds.sources.decode.values import milliseconds

__all__ = [
    "BY_CONSUL",
    "BY_FILE",
    "CLAIMED",
    "TERMINATING_GATEWAY",
    "EntryFacts",
    "agent_default_allow",
    "chain",
    "combined",
    "config_entries",
    "entry_facts",
    "gateways",
    "intention",
    "intentions",
    "leaf",
    "milliseconds",
    "ordered",
    "query_result",
    "roots",
    "service_instances",
    "sidecar",
]
