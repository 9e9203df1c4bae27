"""Encodes the rules for ``iptables-restore`` and ``ip6tables-restore``, where nft is missing: Consul's chains and
order.

Each family is one transaction. It empties existing chains of Gossamer and removes jumps to them first, so that applying
the rules twice has no further effect.
"""

from __future__ import annotations

import ipaddress

from xds.redirect.rules import DNS_PORT, Rules

CHAINS = (
    "CONSUL_PROXY_INBOUND",
    "CONSUL_PROXY_IN_REDIRECT",
    "CONSUL_PROXY_OUTPUT",
    "CONSUL_PROXY_REDIRECT",
    "CONSUL_DNS_REDIRECT",
)


def wanted(rules: Rules, version: int) -> list[str]:
    """Return the rules for one family, with ``version`` 4 or 6, as ``iptables-save`` would print them."""
    host = "127.0.0.1/32" if version == 4 else "::1/128"
    lines: list[str] = []
    dns = _dns(rules, version)
    to_dns = dict.fromkeys([*dns, *(["udp"] if rules.sidecar_dns_port is not None else [])])
    lines += [f"-A OUTPUT -p {protocol} -m {protocol} --dport {DNS_PORT} -j CONSUL_DNS_REDIRECT" for protocol in to_dns]
    lines += ["-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT", "-A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND"]
    lines += [f"-A CONSUL_DNS_REDIRECT {rule}" for rule in dns.values()]
    if rules.sidecar_dns_port is not None:
        exempt = (*rules.exclude_uids, rules.proxy_uid)
        lines += [f"-A CONSUL_DNS_REDIRECT -m owner --uid-owner {uid} -j RETURN" for uid in exempt]
        lines.append(f"-A CONSUL_DNS_REDIRECT -p udp -j REDIRECT --to-ports {rules.sidecar_dns_port}")
    lines += [f"-A CONSUL_PROXY_INBOUND -p tcp -m tcp --dport {port} -j RETURN" for port in rules.exclude_inbound_ports]
    lines.append("-A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT")
    lines.append(f"-A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports {rules.inbound_port}")
    lines += [f"-A CONSUL_PROXY_OUTPUT -m owner --uid-owner {uid} -j RETURN" for uid in rules.exclude_uids]
    lines += [
        f"-A CONSUL_PROXY_OUTPUT -d {network} -j RETURN"
        for network in rules.exclude_outbound_cidrs
        if network.version == version and network.prefixlen
    ]
    lines += [f"-A CONSUL_PROXY_OUTPUT -p tcp -m tcp --dport {port} -j RETURN" for port in rules.exclude_outbound_ports]
    lines += [
        f"-A CONSUL_PROXY_OUTPUT -m owner --uid-owner {rules.proxy_uid} -j RETURN",
        f"-A CONSUL_PROXY_OUTPUT -d {host} -j RETURN",
        "-A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT",
        f"-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-ports {rules.outbound_port}",
    ]
    return lines


def _dns(rules: Rules, version: int) -> dict[str, str]:
    if rules.dns is None or rules.dns.address.version != version:
        return {}
    address, port = rules.dns.address, rules.dns.port
    destination = str(address)
    only = ""
    if port is not None:
        destination = f"{address}:{port}" if version == 4 else f"[{address}]:{port}"
        only = f"-d {ipaddress.ip_network(address)} "
    return {
        protocol: f"{only}-p {protocol} -m {protocol} --dport {DNS_PORT} -j DNAT --to-destination {destination}"
        for protocol in ("udp", "tcp")
    }


def ours(saved: str) -> list[str]:
    """Return the lines of an ``iptables-save`` that belong to Gossamer: rules in its chains and jumps to them."""
    return [line for line in saved.splitlines() if line.startswith("-A") and any(chain in line for chain in CHAINS)]


def restore(rules: Rules, version: int, saved: str) -> str:
    """Return the input of ``iptables-restore --noflush``; ``saved`` is the current nat table."""
    declared = [f":{chain} - [0:0]" for chain in CHAINS]
    return "\n".join(["*nat", *declared, *_jumps_removed(saved), *wanted(rules, version), "COMMIT"]) + "\n"


def undo(saved: str) -> str:
    """Return the input that removes the chains and the jumps to them; empty when there is nothing to remove."""
    standing = [chain for chain in CHAINS if f":{chain} " in saved]
    if not standing:
        return ""
    flushed = [f":{chain} - [0:0]" for chain in standing]
    deleted = [f"-X {chain}" for chain in standing]
    return "\n".join(["*nat", *flushed, *_jumps_removed(saved), *deleted, "COMMIT"]) + "\n"


def _jumps_removed(saved: str) -> list[str]:
    return [line.replace("-A", "-D", 1) for line in ours(saved) if line.split()[1] in ("OUTPUT", "PREROUTING")]


def same(saved: str, rules: Rules, version: int) -> bool:
    """Return whether the rules are applied exactly, in order within each chain."""
    return _by_chain(ours(saved)) == _by_chain(wanted(rules, version))


def _by_chain(lines: list[str]) -> dict[str, list[str]]:
    chains: dict[str, list[str]] = {}
    for line in lines:
        _, chain, *rest = line.split()
        # iptables-save prints the address before the protocol, regardless of the order in which they were given.
        chains.setdefault(chain, []).append(" ".join(sorted(rest)))
    return chains
