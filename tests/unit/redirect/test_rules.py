"""The rules as text. That the kernel does what they say is for the integration tests."""

from __future__ import annotations

import ipaddress

from xds.redirect import iptables, nftables
from xds.redirect.rules import DnsRedirect, Rules

RULES = Rules(
    proxy_uid=5678,
    inbound_port=20000,
    outbound_port=15001,
    exclude_inbound_ports=(22,),
    exclude_outbound_ports=(5432,),
    exclude_outbound_cidrs=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")),
    exclude_uids=(7,),
    dns=DnsRedirect(ipaddress.ip_address("127.0.0.1"), 8600),
)


def test_exclusions_come_before_the_redirection_and_the_proxys_own_user_too() -> None:
    chain = nftables.chains(RULES)["proxy_output"]
    assert chain == [
        "meta skuid 7 return",
        "ip daddr 10.1.0.0/16 return",
        "ip6 daddr fd00::/8 return",
        "tcp dport 5432 return",
        "meta skuid 5678 return",
        "ip daddr 127.0.0.1 return",
        "ip6 daddr ::1 return",
        "meta l4proto tcp redirect to :15001",
    ]
    assert nftables.chains(RULES)["proxy_inbound"] == ["tcp dport 22 return", "meta l4proto tcp redirect to :20000"]


def test_the_transaction_replaces_the_table_whole() -> None:
    text = nftables.transaction(RULES)
    assert text.startswith("add table inet gossamer\ndelete table inet gossamer\ntable inet gossamer {\n")
    assert "ip daddr 127.0.0.1 udp dport 53 dnat ip to 127.0.0.1:8600" in text


def test_dns_without_a_port_takes_every_query() -> None:
    rules = Rules(1, 2, dns=DnsRedirect(ipaddress.ip_address("10.0.0.53")))
    assert "meta nfproto ipv4 tcp dport 53 dnat ip to 10.0.0.53" in nftables.transaction(rules)


def test_iptables_takes_its_old_jumps_away_first_so_that_twice_is_once() -> None:
    first = iptables.restore(RULES, 4, "")
    saved = "*nat\n" + "\n".join(iptables.wanted(RULES, 4)) + "\n-A OUTPUT -j SOMEONE_ELSE\nCOMMIT\n"
    again = iptables.restore(RULES, 4, saved)
    assert "-D OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT" not in first
    assert "-D OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT" in again
    assert "SOMEONE_ELSE" not in again


def test_iptables_knows_its_rules_again_as_they_are_saved() -> None:
    saved = "\n".join(iptables.wanted(RULES, 4)).replace(
        "-A CONSUL_DNS_REDIRECT -d 127.0.0.1/32 -p udp", "-A CONSUL_DNS_REDIRECT -p udp -d 127.0.0.1/32"
    )
    assert iptables.same(saved, RULES, 4)
    assert not iptables.same(saved.replace("20000", "20001"), RULES, 4)
    assert not iptables.same("", RULES, 4)


def test_each_family_gets_its_own_networks() -> None:
    assert not any("fd00" in line for line in iptables.wanted(RULES, 4))
    assert not any("10.1.0.0" in line for line in iptables.wanted(RULES, 6))


def test_undo_without_rules_does_nothing() -> None:
    assert iptables.undo("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n") == ""
