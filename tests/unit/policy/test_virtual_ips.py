"""Who owns a virtual IP."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.chains import DiscoveryChain
from xds.mesh.facts import ANY_PORT, Health, Instance, ServiceInstances, VirtualAddress
from xds.policy.virtual_ips import VirtualIPTable, claims

SERVICES = ["a", "b", "c"]
IPS = ["240.0.0.1", "240.0.0.2", "fd00::1"]
ADDRESSES = st.builds(VirtualAddress, st.sampled_from(IPS), st.sampled_from([ANY_PORT, 80, 81]), st.booleans())
CLAIMS = st.dictionaries(ADDRESSES, st.integers(1, 5))


def at(ip: str, port: int = ANY_PORT) -> VirtualAddress:
    return VirtualAddress(ip, port)


def instance(service_id: str, *virtual_ips: str, create_index: int = 10) -> Instance:
    return Instance(
        service_id, "node", "10.0.0.1", 20000, Health.PASSING, 1, 1, tuple(map(at, virtual_ips)), create_index
    )


def test_the_earlier_keeps_the_address_and_the_other_is_told_whose_it_is() -> None:
    table = VirtualIPTable()
    table.claim("late", {at("240.0.0.1"): 9, at("240.0.0.2"): 9})
    assert table.claim("early", {at("240.0.0.1"): 3}) == {"late", "early"}
    assert table.owned("early") == (at("240.0.0.1"),)
    assert table.owned("late") == (at("240.0.0.2"),)
    assert table.lost("late") == {at("240.0.0.1"): "early"}


def test_the_address_goes_to_the_next_when_its_owner_gives_it_up() -> None:
    table = VirtualIPTable()
    table.claim("early", {at("240.0.0.1"): 3})
    table.claim("late", {at("240.0.0.1"): 9})
    assert table.claim("early", {}) == {"late", "early"}
    assert table.owners("240.0.0.1") == {ANY_PORT: "late"}


@given(st.lists(st.tuples(st.sampled_from(SERVICES), CLAIMS), max_size=12))
def test_the_owners_depend_on_the_claims_alone_not_on_how_they_came_about(
    history: list[tuple[str, dict[VirtualAddress, int]]],
) -> None:
    table, final = VirtualIPTable(), dict(history)
    for service, since in history:
        before = {service: table.owned(service) for service in SERVICES}
        touched = table.claim(service, since)
        assert {service for service in SERVICES if table.owned(service) != before[service]} <= touched
    anew = VirtualIPTable()
    for service in sorted(final):
        anew.claim(service, final[service])
    for ip in IPS:
        assert table.owners(ip) == anew.owners(ip)
        for port, owner in table.owners(ip).items():
            rivals = [
                (index, service) for service, since in final.items() for claim, index in since.items()
                if claim.ip == ip and (claim.port == port or len(table.owners(ip)) == 1)
            ]  # fmt: skip
            assert owner in {service for _, service in rivals}
            if port != ANY_PORT:
                assert owner == min(rivals)[1] or len(table.owners(ip)) == 1
    for service in SERVICES:
        assert not {claim.ip for claim in table.lost(service)} - {claim.ip for claim in final.get(service, {})}


def test_where_two_share_an_address_the_port_decides_but_who_claims_all_of_it_shares_with_nobody() -> None:
    table = VirtualIPTable()
    table.claim("web", {at("10.96.0.1", 80): 1})
    assert table.owners("10.96.0.1") == {ANY_PORT: "web"}
    table.claim("late", {at("10.96.0.1", 80): 9})
    assert table.owners("10.96.0.1") == {ANY_PORT: "web"}
    assert table.lost("late") == {at("10.96.0.1", 80): "web"}
    table.claim("late", {})
    table.claim("admin", {at("10.96.0.1", 81): 2})
    assert table.owners("10.96.0.1") == {80: "web", 81: "admin"}
    assert not any(table.lost(service) for service in ("web", "admin"))
    table.claim("whole", {at("10.96.0.1"): 3})
    assert table.owners("10.96.0.1") == {80: "web", 81: "admin"}
    assert table.lost("whole") == {at("10.96.0.1"): "web"}
    table.claim("earlier", {at("10.96.0.1"): 0})
    assert table.owners("10.96.0.1") == {ANY_PORT: "earlier"}
    assert table.lost("web") == {at("10.96.0.1", 80): "earlier"}


def test_strict_ports_and_an_instances_own_address_are_of_one_port() -> None:
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
    assert claims(instances, chain).since == {at("240.0.0.1"): 7, at("fd00::1"): 7, at("240.0.0.9"): 7}


def test_what_is_no_address_is_set_aside() -> None:
    found = claims(ServiceInstances("api", (instance("1", "not-an-ip", "240.0.0.1"),)), None)
    assert found.malformed == ("not-an-ip",)
    assert set(found.since) == {at("240.0.0.1")}
