"""The kernel's redirection: what is excluded really is, and the tables are afterwards what they were before."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers, ask_as
from xds.lab.application import who_answers
from xds.lab.commands import application, gossamer, here, redirect
from xds.lab.mesh import Lab, Member
from xds.lab.network import Host, Network
from xds.lab.processes import CommandError, Process, eventually, run_to_end

EXCLUDED_PORT, OTHER_PORT, INBOUND_PORT = 9001, 9002, 9100
EXCLUDED_UID, OTHER_UID = 7777, 8888


UDP_ECHO = """
import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    _, client = server.recvfrom(100)
    server.sendto(b"resolved on " + sys.argv[1].encode(), client)
"""
UDP_ASK = """
import socket, sys
client = socket.socket(type=socket.SOCK_DGRAM)
client.settimeout(0.5)
client.connect((sys.argv[1], int(sys.argv[2])))
try:
    client.send(b"?")
    print(client.recv(100).decode())
except OSError:
    print()
"""


@dataclass(slots=True)
class Closed:
    """A mesh of virtual IPs only, so that whatever reaches an outside host went past the sidecar."""

    lab: Lab
    web: Member
    near: Host
    far: Host


@pytest.fixture(scope="module")
async def closed() -> AsyncIterator[Closed]:
    async with Lab(serve_arguments=("--mesh-destinations-only",)) as lab:
        near, far = lab.host("near"), lab.host("far")
        for host in (near, far):
            for port in (EXCLUDED_PORT, OTHER_PORT):
                await lab.application(host.name, host, port, host.address)
        web = await lab.member(
            "web",
            virtual_ip="240.9.0.10",
            redirect=(
                "--exclude-outbound-port", str(EXCLUDED_PORT),
                "--exclude-outbound-cidr", f"{far.address}/32",
                "--exclude-uid", str(EXCLUDED_UID),
                "--exclude-inbound-port", str(INBOUND_PORT),
            ),
        )  # fmt: skip
        await lab.member("api", virtual_ip="240.9.0.11")
        await lab.served(*lab.members)
        yield Closed(lab, web, near, far)


async def test_with_destinations_only_there_is_no_passthrough(closed: Closed) -> None:
    await answers(closed.web.host, "240.9.0.11", 80, "api-1")
    assert await who_answers(closed.web.host, closed.near.address, OTHER_PORT) is None


async def test_an_excluded_outbound_port_is_dialed_directly(closed: Closed) -> None:
    await answers(closed.web.host, closed.near.address, EXCLUDED_PORT, "near")


async def test_an_excluded_network_is_dialed_directly(closed: Closed) -> None:
    await answers(closed.web.host, closed.far.address, OTHER_PORT, "far")


async def test_an_excluded_user_dials_directly_and_no_other_does(closed: Closed) -> None:
    assert await ask_as(closed.web.host, EXCLUDED_UID, closed.near.address, OTHER_PORT) == "near"
    assert await ask_as(closed.web.host, OTHER_UID, closed.near.address, OTHER_PORT) is None


async def test_an_excluded_inbound_port_is_reached_without_the_sidecar(closed: Closed) -> None:
    host = closed.web.host
    for port in (INBOUND_PORT, INBOUND_PORT + 1):
        await closed.lab.run(f"plain-{port}", host, *_server("plain", port, host.address))
    await answers(closed.near, host.address, INBOUND_PORT, "plain")
    assert await who_answers(closed.near, host.address, INBOUND_PORT + 1, say="hello") is None


def _server(name: str, port: int, address: str) -> list[str]:
    return here(application(name, port, address=address))


async def test_the_ports_come_from_the_registration_where_only_the_sidecar_is_named(closed: Closed) -> None:
    lab, web = closed.lab, closed.web
    command = [
        *gossamer("redirect-traffic"), "-proxy-id", web.sidecar_id, "-node-name", web.node, "-proxy-uid", "5678",
        "--consul", lab.consul.url, "--dry-run",
    ]  # fmt: skip
    rules = await run_to_end(*lab.control.command(*command))
    assert "redirect to :20000" in rules
    assert "redirect to :15001" in rules


async def test_dns_queries_go_where_they_are_sent(closed: Closed) -> None:
    """Consul's own form: queries for 127.0.0.1, where an agent listens on a port that needs no root."""
    host, lab = closed.near, closed.lab
    await lab.run("dns", host, sys.executable, "-c", UDP_ECHO, "8600")
    command = [*gossamer("redirect-traffic"), "--netns", host.path, "--proxy-uid", "5678", "--proxy-inbound-port", "1"]
    await run_to_end(*command, "--consul-dns-ip", "127.0.0.1", "--consul-dns-port", "8600")
    try:

        async def answered() -> str:
            return (await run_to_end(*host.command(sys.executable, "-c", UDP_ASK, "127.0.0.1", "53"))).strip()

        assert await eventually("the resolver to answer", answered) == "resolved on 8600"
    finally:
        await run_to_end(*gossamer("redirect-traffic"), "--netns", host.path, "--undo")


async def test_iptables_redirects_just_as_well(closed: Closed, only_iptables: str) -> None:
    lab = closed.lab
    member = await lab.member("old-school", virtual_ip="240.9.0.12", start=False)
    await lab.application("old-school-1", member.host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", only_iptables)
        await lab.redirect(member, "--exclude-outbound-port", str(EXCLUDED_PORT))
    assert "CONSUL_PROXY_OUTPUT" in await run_to_end(*member.host.command("iptables-save"))
    await lab.start_sidecar(member)
    await lab.served(member)
    await answers(member.host, "240.9.0.11", 80, "api-1")
    await answers(closed.web.host, "240.9.0.12", 80, "old-school-1")
    await answers(member.host, closed.near.address, EXCLUDED_PORT, "near")
    assert await who_answers(member.host, closed.near.address, OTHER_PORT) is None


@pytest.fixture
def only_iptables(tmp_path: Path) -> str:
    """Make a PATH without nft, as on a host that has only iptables."""
    tools = [f"{family}-{verb}" for family in ("iptables", "ip6tables") for verb in ("save", "restore")]
    for tool in ("nsenter", *tools):
        found = shutil.which(tool)
        assert found, f"{tool} is not installed"
        (tmp_path / tool).symlink_to(found)
    return str(tmp_path)


@pytest.fixture
def host() -> Iterator[Host]:
    with Network() as network:
        yield network.host("alone")


SAMPLE = [
    "--proxy-uid", "5678", "--proxy-inbound-port", "20000", "--exclude-inbound-port", "22",
    "--exclude-outbound-cidr", "10.1.0.0/16", "--exclude-outbound-cidr", "fd00::/8", "--exclude-uid", "7",
    "--consul-dns-ip", "127.0.0.1", "--consul-dns-port", "8600",
]  # fmt: skip


async def tables(host: Host) -> str:
    """Everything that nft knows there, counters left out."""
    return await run_to_end(*host.command("nft", "--stateless", "list", "ruleset"))


@pytest.mark.parametrize("backend", ["nft", "iptables"])
async def test_redirect_again_and_undo_leave_the_tables_as_they_were(
    host: Host, backend: str, only_iptables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def redirect(*more: str, fails: bool = False) -> str:
        command = [*gossamer("redirect-traffic"), "--netns", host.path, *more]
        with monkeypatch.context() as patch:
            if backend == "iptables":
                patch.setenv("PATH", only_iptables)
            if not fails:
                return await run_to_end(*command)
            with pytest.raises(CommandError) as caught:
                await run_to_end(*command)
            return str(caught.value)

    await run_to_end(*host.command("nft", "add", "table", "inet", "someone_elses"))
    if backend == "iptables":
        # iptables makes its own empty tables on first use, and never takes them away.
        for tool in ("iptables", "ip6tables"):
            await run_to_end(*host.command(tool, "-t", "nat", "-N", "SOMEONE_ELSES"))
            for chain in ("OUTPUT", "PREROUTING"):
                await run_to_end(*host.command(tool, "-t", "nat", "-A", chain, "-j", "SOMEONE_ELSES"))
    before = await tables(host)
    assert "are not applied" in await redirect(*SAMPLE, "--verify", fails=True)
    await redirect(*SAMPLE)
    once = await tables(host)
    assert once != before
    assert "the rules stand" in await redirect(*SAMPLE, "--verify")
    await redirect(*SAMPLE)
    assert sorted((await tables(host)).splitlines()) == sorted(once.splitlines())
    assert "the rules stand" in await redirect(*SAMPLE, "--verify")
    assert "are not applied" in await redirect(*SAMPLE, "--exclude-inbound-port", "23", "--verify", fails=True)
    to_sidecar = (*SAMPLE[:-4], "--dns-port", "8653")
    await redirect(*to_sidecar)
    assert "the rules stand" in await redirect(*to_sidecar, "--verify")
    assert "are not applied" in await redirect(*SAMPLE, "--verify", fails=True)
    await redirect("--undo")
    assert await tables(host) == before
    await redirect("--undo")
    assert await tables(host) == before


async def test_rules_of_the_other_tool_are_removed(host: Host, only_iptables: str) -> None:
    """Redirected with iptables, then nftables was installed."""
    command = [*gossamer("redirect-traffic"), "--netns", host.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", only_iptables)
        await run_to_end(*command, *SAMPLE)
    assert "CONSUL_PROXY" in await tables(host)
    await run_to_end(*command, *SAMPLE)
    assert "CONSUL_PROXY" not in await tables(host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", only_iptables)
        await run_to_end(*command, *SAMPLE)
    await run_to_end(*command, "--undo")
    assert "CONSUL_PROXY" not in await tables(host)
    assert "table inet gossamer" not in await tables(host)


async def test_changed_rules_are_reported(host: Host) -> None:
    command = [*gossamer("redirect-traffic"), "--netns", host.path, *SAMPLE]
    await run_to_end(*command)
    await run_to_end(
        *host.command("nft", "insert", "rule", "inet", "gossamer", "proxy_output", "tcp", "dport", "1", "return")
    )
    with pytest.raises(CommandError, match="code 3"):
        await run_to_end(*command, "--verify")


async def test_a_refusal_by_the_kernel_is_one_line_that_says_what_to_do(host: Host) -> None:
    command = [*gossamer("redirect-traffic"), "--proxy-uid", "1", "--proxy-inbound-port", "20000"]
    with pytest.raises(CommandError) as caught:
        await run_to_end(*host.command(*command, uid=7))
    assert "it needs root or CAP_NET_ADMIN" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(CommandError) as caught:
        await run_to_end(*command, "--netns", "/run/netns/not-there")
    assert "Traceback" not in str(caught.value)
    assert "/run/netns/not-there" in str(caught.value)


@pytest.mark.parametrize("backend", ["nft", "iptables"])
async def test_an_invalid_packet_opens_no_path_around_the_sidecar(
    allowing: Mesh, backend: str, only_iptables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An acknowledgement out of nowhere, made so that nobody answers it, stays in the kernel's table of connections.

    What follows on the same ports is that connection's to the kernel: it has to have been redirected already.
    """
    lab = allowing.lab
    attacked, attacker = lab.host(f"attacked-{backend}"), lab.host(f"attacker-{backend}")
    await lab.application("application", attacked, 8080, attacked.address)
    await lab.application("envoy", attacked, 20000, attacked.address)
    with monkeypatch.context() as patch:
        if backend == "iptables":
            patch.setenv("PATH", only_iptables)
        await run_to_end(*gossamer("redirect-traffic", "--netns", attacked.path, *SAMPLE))
    strays = ((ACK, b""), (ACK, MD5_SIGNATURE), (SYN | ACK, b""), (FIN | ACK, b""))
    for port, (flags, options) in enumerate(strays, start=41000):
        raw = attacker.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP)
        with raw:
            raw.sendto(segment(attacker.address, port, attacked.address, 8080, flags, options), (attacked.address, 0))
        made = attacker.socket()
        made.bind((attacker.address, port))
        reader, writer = await asyncio.open_connection(sock=await _connected(made, attacked.address, 8080))
        assert await reader.readline() == b"envoy\n", f"flags {flags:#x}, options {options!r}"
        writer.close()


FIN, SYN, ACK = 0x01, 0x02, 0x10
MD5_SIGNATURE = b"\x13\x12" + b"x" * 16 + b"\x01\x01"
"""An option that makes a host which expects none discard the segment without a word (RFC 2385)."""


async def _connected(made: socket.socket, address: str, port: int) -> socket.socket:
    async with asyncio.timeout(10):
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    return made


def segment(source: str, source_port: int, to: str, to_port: int, flags: int, options: bytes) -> bytes:
    """Return a TCP segment with its checksum."""
    offset = (20 + len(options)) // 4 << 4
    header = struct.pack("!HHIIBBHHH", source_port, to_port, 12345, 54321, offset, flags, 1024, 0, 0) + options
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    total = sum(struct.unpack(f"!{len(pseudo + header) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]


async def test_held_rules_are_marked_in_their_namespace_until_the_holder_ends(tmp_path: Path) -> None:
    with Network() as network:
        host, other = network.host("held"), network.host("other")
        command = host.command(*here([*redirect(hold=True)]))
        holder = await Process.start("holder", command, tmp_path / "holder.log")
        try:

            async def marked() -> bool:
                return "@gossamer-redirected" in await run_to_end(*host.command("cat", "/proc/net/unix"))

            await eventually("the mark", marked)
            await run_to_end(*host.command(*gossamer("redirect-traffic", *redirect()[2:], "--verify")))
            assert "@gossamer-redirected" not in await run_to_end(*other.command("cat", "/proc/net/unix"))
            with pytest.raises(CommandError, match="another process holds the redirection"):
                await run_to_end(*command)
        finally:
            await holder.stop()
        assert await holder.ended() == 0
        assert not await marked()
