"""Encodes the rules as one nftables transaction for IPv4 and IPv6, which replaces Gossamer's table as a whole."""

from __future__ import annotations

from xds.redirect.rules import DNS_PORT, Rules

TABLE = "gossamer"
UNDO = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
"""Removes the table, whether it is there or not."""


def chains(rules: Rules) -> dict[str, list[str]]:
    """Return the rules of each chain, in order. A chain's hook, where it has one, comes first."""
    output: list[str] = ["type nat hook output priority -100; policy accept;"]
    if rules.dns is not None:
        output += _dns(rules)
    if rules.sidecar_dns_port is not None:
        output += [f"meta skuid {uid} udp dport {DNS_PORT} return" for uid in (*rules.exclude_uids, rules.proxy_uid)]
        output.append(f"udp dport {DNS_PORT} redirect to :{rules.sidecar_dns_port}")
    output.append("meta l4proto tcp jump proxy_output")
    outbound = [f"meta skuid {uid} return" for uid in rules.exclude_uids]
    for network in rules.exclude_outbound_cidrs:
        outbound.append(f"{'ip' if network.version == 4 else 'ip6'} daddr {_network(network)} return")
    outbound += [f"tcp dport {port} return" for port in rules.exclude_outbound_ports]
    outbound += [
        f"meta skuid {rules.proxy_uid} return",
        "ip daddr 127.0.0.1 return",
        "ip6 daddr ::1 return",
        f"meta l4proto tcp redirect to :{rules.outbound_port}",
    ]
    inbound = [f"tcp dport {port} return" for port in rules.exclude_inbound_ports]
    inbound.append(f"meta l4proto tcp redirect to :{rules.inbound_port}")
    return {
        "output": output,
        "proxy_output": outbound,
        "prerouting": [
            "type nat hook prerouting priority -100; policy accept;",
            "meta l4proto tcp jump proxy_inbound",
        ],
        "proxy_inbound": inbound,
    }


def _dns(rules: Rules) -> list[str]:
    assert rules.dns is not None
    family = "ip" if rules.dns.address.version == 4 else "ip6"
    address, port = rules.dns.address, rules.dns.port
    if port is None:
        target, only = str(address), f"meta nfproto {'ipv4' if family == 'ip' else 'ipv6'} "
    else:
        target = f"{address}:{port}" if family == "ip" else f"[{address}]:{port}"
        only = f"{family} daddr {address} "
    return [f"{only}{protocol} dport {DNS_PORT} dnat {family} to {target}" for protocol in ("udp", "tcp")]


def _network(network: object) -> str:
    text = str(network)
    return text.removesuffix("/32") if "." in text else text.removesuffix("/128")


def transaction(rules: Rules) -> str:
    """Return the input of ``nft -f`` that replaces the table in one step."""
    lines = [UNDO.rstrip(), f"table inet {TABLE} {{"]
    # A chain must exist before a rule can jump to it.
    for chain, content in sorted(chains(rules).items(), key=lambda item: not item[0].startswith("proxy_")):
        lines += [f"\tchain {chain} {{", *(f"\t\t{line}" for line in content), "\t}"]
    return "\n".join([*lines, "}"]) + "\n"
