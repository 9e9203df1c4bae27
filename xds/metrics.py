"""Prometheus metrics. Each control plane has a registry of its own, so that tests can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from xds.envoy.resource import TYPE_NAMES


class Metrics:
    """The metrics of one control plane."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.streams = Gauge(
            "gossamer_streams", "Connected xDS streams by protocol variant", ["variant"], registry=self.registry
        )
        sent = Counter(
            "gossamer_responses_sent", "Discovery responses sent, by resource type", ["type"], registry=self.registry
        )
        sent_bytes = Counter(
            "gossamer_responses_bytes", "Bytes of discovery responses sent", ["type"], registry=self.registry
        )
        acknowledged = Counter(
            "gossamer_responses_acknowledged", "Responses acknowledged by proxies", ["type"], registry=self.registry
        )
        self.rejected = Counter(
            "gossamer_resources_rejected", "Resources rejected by proxies", ["type"], registry=self.registry
        )
        self.rejecting = Gauge(
            "gossamer_sidecars_rejecting",
            "Sidecars that reject something that is meant for them",
            registry=self.registry,
        )
        self.refused = Counter(
            "gossamer_streams_refused",
            "Streams refused or ended because their sidecar may not act for its service",
            registry=self.registry,
        )
        self.facts_changed = Counter(
            "gossamer_facts_changed", "Facts that differed from what was known", registry=self.registry
        )
        self.watches = Gauge("gossamer_consul_watches", "Blocking queries kept on Consul", registry=self.registry)
        seconds = Histogram(
            "gossamer_acknowledgement_seconds",
            "From sending a response to its acknowledgement",
            ["type"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        # Looked up once, because these are counted for every response.
        self.sent = {url: sent.labels(name) for url, name in TYPE_NAMES.items()}
        self.sent_bytes = {url: sent_bytes.labels(name) for url, name in TYPE_NAMES.items()}
        self.acknowledged = {url: acknowledged.labels(name) for url, name in TYPE_NAMES.items()}
        self.acknowledgement_seconds = {url: seconds.labels(name) for url, name in TYPE_NAMES.items()}
        """All four by type URL."""
