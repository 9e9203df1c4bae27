"""The other design: a filter chain for each upstream, certificates inlined in every cluster, as Consul has it.

A process of its own that serves one Envoy over delta ADS. It is made of Gossamer's own resources, so that nothing but
the design differs: a listener with as many chains as there are upstreams, sent again whole whenever one is added.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage

from benchmarks.child import obey
from xds.ads.server import SERVICE
from xds.envoy.outbound import tcp_proxy
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER
from xds.envoy.wire_format import field
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import original_dst_pb2, tls_pb2
from xds.wire.envoy.service import discovery_pb2 as discovery

NAME = "outbound_listener:127.0.0.1:15001"


def inlined(body: bytes, certificate: tls_pb2.TlsCertificate, roots: str) -> bytes:
    """Return a cluster with its certificates inside (CommonTlsContext: tls_certificates 2, validation_context 3)."""
    message = cluster.Cluster.FromString(body)
    context = tls_pb2.UpstreamTlsContext()
    message.transport_socket.typed_config.Unpack(context)
    validation = tls_pb2.CertificateValidationContext()
    validation.CopyFrom(context.common_tls_context.combined_validation_context.default_validation_context)
    validation.trusted_ca.inline_string = roots
    common = field(2, certificate.SerializeToString()) + field(3, validation.SerializeToString())
    message.transport_socket.typed_config.value = field(1, common) + field(2, context.sni.encode())
    return message.SerializeToString()


def chain(name: str) -> bytes:
    """Return an upstream's chain: ``vip:`` and its address (FilterChain: filter_chain_match 1, prefix_ranges 3)."""
    address = name.removeprefix("vip:")
    made = listener.FilterChain(name=name, filters=[tcp_proxy(f"upstream.{name}", cluster=name)])
    only = field(3, field(1, address.encode()) + field(2, b"\x08\x20"))
    return made.SerializeToString() + field(1, only)


class Chains:
    """Serves whoever connects."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, bytes]] = {CLUSTER: {}, ENDPOINT: {}}
        self._certificate = tls_pb2.TlsCertificate()
        self._roots = ""
        self._chains: dict[str, bytes] = {}
        self._base = b""
        self._stream: asyncio.Queue[tuple[str, dict[str, bytes]]] = asyncio.Queue()
        self._acknowledged: dict[str, int] = {}

    async def listen(self, host: str, certificate: str, key: str, roots: str) -> int:
        """Listen; the port."""
        self._certificate.certificate_chain.inline_string = certificate
        self._certificate.private_key.inline_string = key
        self._roots = roots
        config = AnyMessage()
        config.Pack(original_dst_pb2.OriginalDst())
        destination = listener.ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=config)
        address = core.Address(socket_address=core.SocketAddress(address="127.0.0.1", port_value=15001))
        self._base = listener.Listener(name=NAME, address=address, listener_filters=[destination]).SerializeToString()
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._handle)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": handler}),)
        )
        port = server.add_insecure_port(f"{host}:0")
        await server.start()
        self._server = server
        return int(port)

    async def hold(self, clusters: dict[str, str], endpoints: dict[str, str]) -> None:
        """Have these, in base64; whoever is connected is sent them, and the listener with their chains."""
        for name, body in clusters.items():
            self._resources[CLUSTER][name] = inlined(base64.b64decode(body), self._certificate, self._roots)
            self._chains[name] = chain(name)
        self._resources[ENDPOINT] |= {name: base64.b64decode(body) for name, body in endpoints.items()}
        self._stream.put_nowait((CLUSTER, {name: self._resources[CLUSTER][name] for name in clusters}))

    def _listener(self) -> dict[str, bytes]:
        return {NAME: self._base + b"".join(field(3, each) for each in self._chains.values())}

    async def _handle(self, _requests: Any, context: Any) -> None:
        writer = asyncio.create_task(self._write(context))
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                request = discovery.DeltaDiscoveryRequest.FromString(message)
                if request.HasField("error_detail"):
                    raise RuntimeError(request.error_detail.message)
                if request.response_nonce and request.type_url == CLUSTER:
                    self._stream.put_nowait((LISTENER, self._listener()))
                if request.type_url == ENDPOINT and request.resource_names_subscribe:
                    found = {name: self._resources[ENDPOINT][name] for name in request.resource_names_subscribe}
                    self._stream.put_nowait((ENDPOINT, found))
        finally:
            writer.cancel()

    async def _write(self, context: Any) -> None:
        nonce = 0
        while True:
            type_url, bodies = await self._stream.get()
            nonce += 1
            await context.write(
                discovery.DeltaDiscoveryResponse(
                    type_url=type_url,
                    nonce=str(nonce),
                    resources=[
                        discovery.Resource(
                            name=name, version=str(nonce), resource=AnyMessage(type_url=type_url, value=body)
                        )
                        for name, body in bodies.items()
                    ],
                ).SerializeToString()
            )


async def main() -> None:
    """Obey."""
    chains = Chains()
    await obey({"listen": chains.listen, "hold": chains.hold})


if __name__ == "__main__":
    asyncio.run(main())
