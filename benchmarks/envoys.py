"""Measures the cost of a thousand and five thousand upstreams for a real Envoy that dials fifty, in several designs.

All at once and on demand, of TCP and of HTTP, and as Consul has it (`benchmarks.chains`). The Envoy stands in a
namespace whose traffic the kernel redirects to it; what it dials through virtual IPs is a TLS server that speaks for
all fifty services.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.child import cpu_seconds, resident_mib
from benchmarks.playback import virtual_ip
from benchmarks.stage import SERVE_PORT, Played, Stage, children
from xds.ads.server import SERVICE
from xds.envoy.bootstrap import BootstrapInputs, sidecar_bootstrap
from xds.envoy.resource import CLUSTER, ENDPOINT
from xds.lab import binaries
from xds.lab.commands import ENVOY_UID, gossamer
from xds.lab.network import Host
from xds.lab.processes import Process, eventually, run_to_end
from xds.mesh.addresses import HostPort
from xds.mesh.spiffe import spiffe_id
from xds.sources.authority import Authority, issue, new_authority
from xds.wire.envoy.service import discovery_pb2 as discovery

DIALED = 50
ADDED = 10
SERVER_PORTS = {"tcp": 20443, "http": 20444}
REQUESTS = {"tcp": b"", "http": b"GET / HTTP/1.1\r\nHost: called\r\n\r\n"}
GREETINGS = {"tcp": b"hello\n", "http": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"}
"""Answers of the called applications."""
ENVOY_ADMIN = 19000
OPEN = ("--insecure", "--plaintext")
"""Flags of `gossamer serve` beside played answers: no ACLs, in a network of the benchmark's own."""
DESIGNS = ("eager", "on-demand", "eager, HTTP", "on-demand, HTTP", "chains")


@dataclass
class Called:
    """The TLS server that everybody who is called is, and who vouches for it."""

    stage: Stage
    authority: Authority
    leaf: dict[str, str]

    def templates(self, protocol: str) -> dict[str, Any]:
        """Return the answers that replace the recorded certificates and the recorded protocol."""
        root = {"ID": "bench", "Active": True, "RootCert": self.authority.certificate}
        roots = {**self.stage.templates["roots"], "TrustDomain": self.authority.trust_domain, "Roots": [root]}
        leaf = {**self.stage.templates["leaf"], **self.leaf}
        chain = {"Chain": {**self.stage.templates["chain"]["Chain"], "Protocol": protocol}}
        return {**self.stage.templates, "roots": roots, "leaf": leaf, "chain": chain}


@asynccontextmanager
async def called(stage: Stage) -> AsyncIterator[Called]:
    """Run it: it says hello to whoever has a certificate of the mesh."""
    now = datetime.now(UTC)
    authority = new_authority(now)
    issued = issue(authority, "s-0", "dc1", now, 0.5).leaf
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.private_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    root = x509.load_pem_x509_certificate(authority.certificate.encode())
    identities = [spiffe_id(f"s-{number}", "dc1", authority.trust_domain) for number in range(1, DIALED + 1)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=5))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(each) for each in identities]), critical=True
        )
        .sign(signer, hashes.SHA256())
    )
    files = {
        "cert": certificate.public_bytes(serialization.Encoding.PEM),
        "key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "roots": authority.certificate.encode(),
    }
    for name, content in files.items():
        (stage.folder / f"called.{name}").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stage.folder / "called.cert", stage.folder / "called.key")
    context.load_verify_locations(stage.folder / "called.roots")
    context.verify_mode = ssl.CERT_REQUIRED

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETINGS["tcp"])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(GREETINGS["http"])

    leaf = {"CertPEM": issued.certificate_chain, "PrivateKeyPEM": issued.private_key}
    async with AsyncExitStack() as stack:
        for protocol, speak in (("tcp", greet), ("http", answer)):
            port = SERVER_PORTS[protocol]
            await stack.enter_async_context(await asyncio.start_server(speak, stage.host.address, port, ssl=context))
        yield Called(stage, authority, leaf)


async def measure(stage: Stage, sizes: tuple[int, ...] = (1000, 5000)) -> dict[str, Any]:
    """Every size in every design."""
    caller = stage.network.host("caller")
    redirect = ["redirect-traffic", "--netns", caller.path, "--proxy-uid", str(ENVOY_UID)]
    await run_to_end(*gossamer(*redirect, "--proxy-inbound-port", "20000", "--exclude-inbound-port", str(ENVOY_ADMIN)))
    found: dict[str, Any] = {}
    async with called(stage) as server:
        for services in sizes:
            found[str(services)] = {design: await _one(stage, caller, server, services, design) for design in DESIGNS}
    return found


async def _one(stage: Stage, caller: Host, server: Called, services: int, design: str) -> dict[str, Any]:
    protocol = "http" if design.endswith("HTTP") else "tcp"
    where = {"address": stage.host.address, "port": SERVER_PORTS[protocol], "own": {"s-0": caller.address}}
    async with stage.playback(services + 1, 1, [], templates=server.templates(protocol), where=where) as played:
        clusters = "eager" if design == "chains" else design.partition(",")[0]
        async with stage.serve(
            "--consul", played.url, "--clusters", clusters, *OPEN, host=stage.host.address
        ) as served:
            await served.ready()
            if design != "chains":
                return await _with_envoy(stage, caller, played, SERVE_PORT, None, services, protocol)
            async with children("benchmarks.chains") as (chains,):
                port = await chains.ask(
                    "listen",
                    host=stage.host.address,
                    certificate=server.leaf["CertPEM"],
                    key=server.leaf["PrivateKeyPEM"],
                    roots=server.authority.certificate,
                )
                everything = await _resources(f"{stage.host.address}:{SERVE_PORT}", services)
                await chains.ask("hold", **everything)
                return await _with_envoy(stage, caller, played, port, chains, services, protocol)


async def _with_envoy(
    stage: Stage, caller: Host, played: Played, port: int, chains: Any, services: int, protocol: str
) -> dict[str, Any]:
    inputs = BootstrapInputs(
        "s-0-0-sidecar-proxy",
        "s-0",
        "",
        (HostPort(stage.host.address, port),),
        HostPort(caller.address, ENVOY_ADMIN),
        "",
        "dc1",
    )
    config = stage.folder / "envoy.json"
    config.write_text(json.dumps(sidecar_bootstrap(inputs), default=str))
    config.chmod(0o644)
    stage.folder.chmod(0o755)
    command = [binaries.envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
    began = time.monotonic()
    envoy = await Process.start("envoy", caller.command(*command, uid=ENVOY_UID), stage.folder / "envoy.log")
    try:

        async def ready() -> bool:
            envoy.alive()
            return await _dial(caller, virtual_ip(DIALED + 1), protocol) is not None

        await eventually("the first dial", ready, within_s=120)
        started = time.monotonic() - began
        first = [await _dial(caller, virtual_ip(number + 1), protocol) for number in range(1, DIALED)]
        second = [await _dial(caller, virtual_ip(number + 1), protocol) for number in range(1, DIALED)]
        await asyncio.sleep(3)
        cpu = cpu_seconds(envoy.pid)
        memory = resident_mib(envoy.pid)
        for number in range(ADDED):
            await played.child.ask("add")
            if chains is not None:
                address = f"vip:{virtual_ip(services + 2 + number)}"
                await chains.ask("hold", **await _resources(f"{stage.host.address}:{SERVE_PORT}", services, [address]))
            await asyncio.sleep(2)
        added = (cpu_seconds(envoy.pid) - cpu) / ADDED
        return {
            "started_s": started,
            "start_cpu_s": cpu,
            "memory_mib": memory,
            "first_dial_ms": statistics.median(each for each in first if each is not None) * 1e3,
            "later_dial_ms": statistics.median(each for each in second if each is not None) * 1e3,
            "refused": sum(each is None for each in (*first, *second)),
            "one_more_cpu_ms": added * 1e3,
        }
    finally:
        await envoy.stop()


async def _dial(caller: Host, address: str, protocol: str) -> float | None:
    """Seconds until the answer's first bytes come through a virtual IP; ``None`` where it is not the right one."""
    connection = caller.socket()
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    try:
        async with asyncio.timeout(10):
            await loop.sock_connect(connection, (address, 80))
            await loop.sock_sendall(connection, REQUESTS[protocol])
            answered = await loop.sock_recv(connection, len("HTTP/1.1 200"))
            return time.monotonic() - began if answered and GREETINGS[protocol].startswith(answered) else None
    except OSError:
        return None
    finally:
        connection.close()


async def _resources(server: str, services: int, only: list[str] | None = None) -> dict[str, dict[str, str]]:
    """Return what Gossamer sends the same sidecar: its upstreams' clusters and endpoints, in base64."""
    async with grpc.aio.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")()
        first = discovery.DeltaDiscoveryRequest(type_url=CLUSTER)
        first.node.id, first.node.cluster = "s-0-0-sidecar-proxy", "s-0"
        await stream.write(first.SerializeToString())
        clusters: dict[str, str] = {}
        while not (set(only) <= clusters.keys() if only else len(clusters) >= services):
            response = discovery.DeltaDiscoveryResponse.FromString(await stream.read())
            clusters |= _named(response)
            again = discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=response.nonce)
            await stream.write(again.SerializeToString())
        wanted = only or [*clusters]
        ask = discovery.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=wanted)
        await stream.write(ask.SerializeToString())
        endpoints = _named(discovery.DeltaDiscoveryResponse.FromString(await stream.read()))
        return {"clusters": {name: clusters[name] for name in wanted}, "endpoints": endpoints}


def _named(response: discovery.DeltaDiscoveryResponse) -> dict[str, str]:
    return {
        resource.name: base64.b64encode(resource.resource.value).decode()
        for resource in response.resources
        if resource.name.startswith("vip:")
    }
