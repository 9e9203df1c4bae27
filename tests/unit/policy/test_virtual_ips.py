"""Tests of who owns a virtual IP."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.addresses import parse_network
from xds.mesh.chains import DiscoveryChain
from xds.mesh.facts import ANY_PORT, Health, Instance, ServiceInstances, VirtualAddress
from xds.policy.virtual_ips import VirtualIPTable, claims

SERVICES = ["a", "b", "c"]
IPS = ["240.0.0.1", "240.0.0.2", "fd00::1"]
ADDRESSES = st.builds(
    VirtualAddress, st.sampled_from(IPS), st.sampled_from([ANY_PORT, 80, 81]), st.booleans(), st.booleans()
)
CLAIMS = st.dictionaries(ADDRESSES, st.integers(1, 5))
RANGES = (parse_network("240.0.0.0/4"), parse_network("fd00::/8"))


def at(ip: str, port: int = ANY_PORT) -> VirtualAddress:
    return VirtualAddress(ip, port)


def instance(service_id: str, *virtual_ips: str, create_index: int = 10) -> Instance:
    return Instance(
        service_id, "node", "10.0.0.1", 20000, Health.PASSING, 1, 1, tuple(map(at, virtual_ips)), create_index
    )


def test_the_earlier_service_keeps_the_address_and_the_other_one_has_the_conflict_reported() -> None:
    table = VirtualIPTable()
    table.claim("late", {at("240.0.0.1"): 9, at("240.0.0.2"): 9})
    assert table.claim("early", {at("240.0.0.1"): 3}) == {"late", "early"}
    assert table.owned("early") == (at("240.0.0.1"),)
    assert table.owned("late") == (at("240.0.0.2"),)
    assert table.lost("late") == {at("240.0.0.1"): "early"}


def test_the_next_claimant_gets_an_address_that_its_owner_releases() -> None:
    table = VirtualIPTable()
    table.claim("early", {at("240.0.0.1"): 3})
    table.claim("late", {at("240.0.0.1"): 9})
    assert table.claim("early", {}) == {"late", "early"}
    assert table.owners("240.0.0.1") == {ANY_PORT: "late"}


def kept_since(history: list[tuple[str, dict[VirtualAddress, int]]]) -> dict[str, dict[VirtualAddress, int]]:
    """Return what each service claims at the end, with the index of its first claim since it claims without a gap."""
    found: dict[str, dict[VirtualAddress, int]] = {}
    for service, since in history:
        before = found.get(service, {})
        found[service] = {each: min(index, before.get(each, index)) for each, index in since.items()}
    return found


@given(st.lists(st.tuples(st.sampled_from(SERVICES), CLAIMS), max_size=12), st.booleans())
def test_the_owners_depend_on_the_claims_and_not_on_the_order_of_services(
    history: list[tuple[str, dict[VirtualAddress, int]]], strict: bool
) -> None:
    table, final = VirtualIPTable(strict=strict), kept_since(history)
    for service, since in history:
        before = {service: table.owned(service) for service in SERVICES}
        touched = table.claim(service, since)
        assert {service for service in SERVICES if table.owned(service) != before[service]} <= touched
    anew = VirtualIPTable(strict=strict)
    for service in sorted(final):
        anew.claim(service, final[service])
    for ip in IPS:
        assert table.owners(ip) == anew.owners(ip)
        claimed = [
            (each, index, service) for service, since in final.items() for each, index in since.items() if each.ip == ip
        ]
        owners = set(table.owners(ip).values())
        assert owners <= {service for *_, service in claimed}
        if claimed:
            best = min((not each.assigned, index, service) for each, index, service in claimed)
            assert best[2] in owners, "an assigned claim is before all others, then the first"
        if any(each.assigned for each, *_ in claimed) and not strict:
            whole = {service for each, _, service in claimed if not each.assigned and not each.own}
            assigned = {service for each, _, service in claimed if each.assigned}
            own = {service for each, _, service in claimed if each.own}
            assert not owners & (whole - assigned - own), "a claimed address takes nothing of an assigned one"
    for service in SERVICES:
        assert not {claim.ip for claim in table.lost(service)} - {claim.ip for claim in final.get(service, {})}
        for ip, others in table.contested(service).items():
            assert service in table.owners(ip).values()
            assert all(service in table.lost(other).values() for other in others)


def test_an_assigned_address_wins_over_every_claim() -> None:
    table = VirtualIPTable()
    table.claim("evil", {at("240.0.0.7"): 1})
    table.claim("api", {VirtualAddress("240.0.0.7", assigned=True): 90})
    assert table.owners("240.0.0.7") == {ANY_PORT: "api"}
    assert table.lost("evil") == {at("240.0.0.7"): "api"}
    assert table.contested("api") == {"240.0.0.7": ("evil",)}


def test_a_rolling_deployment_of_the_owner_keeps_its_address() -> None:
    table = VirtualIPTable()
    table.claim("api", {at("240.0.0.7"): 10})
    table.claim("evil", {at("240.0.0.7"): 50})
    table.claim("api", {at("240.0.0.7"): 90})
    assert table.owners("240.0.0.7") == {ANY_PORT: "api"}
    table.claim("api", {})
    table.claim("api", {at("240.0.0.7"): 91})
    assert table.owners("240.0.0.7") == {ANY_PORT: "evil"}, "it gave the address up in between"


def test_a_claim_of_one_port_does_not_split_an_address() -> None:
    for api in (at("240.0.0.7"), at("240.0.0.7", 80), VirtualAddress("240.0.0.7", assigned=True)):
        table = VirtualIPTable()
        table.claim("api", {api: 10})
        table.claim("evil", {at("240.0.0.7", 8080): 20})
        assert table.owners("240.0.0.7") == {ANY_PORT: "api"}
        assert table.lost("evil") == {at("240.0.0.7", 8080): "api"}


def test_services_share_an_assigned_address_by_port_but_not_one_claimed_whole() -> None:
    def given(port: int = ANY_PORT) -> VirtualAddress:
        return VirtualAddress("10.96.0.1", port, assigned=True)

    table = VirtualIPTable()
    table.claim("web", {given(80): 1})
    assert table.owners("10.96.0.1") == {ANY_PORT: "web"}
    table.claim("late", {given(80): 9})
    assert table.owners("10.96.0.1") == {ANY_PORT: "web"}
    assert table.lost("late") == {given(80): "web"}
    table.claim("late", {})
    table.claim("admin", {given(81): 2})
    assert table.owners("10.96.0.1") == {80: "web", 81: "admin"}
    assert not any(table.lost(service) for service in ("web", "admin"))
    table.claim("whole", {given(): 3})
    assert table.owners("10.96.0.1") == {80: "web", 81: "admin"}
    assert table.lost("whole") == {given(): "web"}
    table.claim("earlier", {given(): 0})
    assert table.owners("10.96.0.1") == {ANY_PORT: "earlier"}
    assert table.lost("web") == {given(80): "earlier"}


def test_with_strict_ports_a_virtual_address_and_an_instance_address_have_one_port() -> None:
    strict = VirtualIPTable(strict=True)
    strict.claim("web", {at("10.96.0.1", 80): 1})
    assert strict.owned("web") == (at("10.96.0.1", 80),)
    table = VirtualIPTable()
    own = VirtualAddress("10.0.0.1", 8080, own=True)
    table.claim("web", {own: 1})
    assert table.owned("web") == (own,)


def test_addresses_come_from_tags_and_from_the_chain_and_are_canonical() -> None:
    instances = ServiceInstances("api", (instance("1", "240.0.0.1", "FD00:0::1", create_index=7),))
    chain = DiscoveryChain("api", virtual_ips=("240.0.0.9", "240.0.0.1"))
    assert claims(instances, chain, RANGES).since == {
        at("240.0.0.1"): 7,
        at("fd00::1"): 7,
        VirtualAddress("240.0.0.9", assigned=True): 7,
        VirtualAddress("240.0.0.1", assigned=True): 7,
    }


def test_an_invalid_address_is_set_aside() -> None:
    found = claims(ServiceInstances("api", (instance("1", "not-an-ip", "fe80::1%zz", "240.0.0.1"),)), None, RANGES)
    assert found.malformed == ("fe80::1%zz", "not-an-ip")
    assert set(found.since) == {at("240.0.0.1")}


def test_a_claim_outside_the_ranges_counts_only_where_it_is_assigned() -> None:
    instances = ServiceInstances("evil", (instance("1", "10.1.2.3"),))
    assert claims(instances, None, RANGES).since == {}
    assert claims(instances, None, RANGES).outside == ("10.1.2.3",)
    assert set(claims(instances, None, (*RANGES, parse_network("10.1.0.0/16"))).since) == {at("10.1.2.3")}
    by_hand = DiscoveryChain("evil", virtual_ips=("10.1.2.3",))
    assert set(claims(instances, by_hand, RANGES).since) == {VirtualAddress("10.1.2.3", assigned=True)}
