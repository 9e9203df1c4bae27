"""Who owns a virtual IP."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.facts import DiscoveryChain, Health, Instance, ServiceInstances
from xds.policy.virtual_ips import VirtualIPTable, claims

SERVICES = ["a", "b", "c"]
IPS = ["240.0.0.1", "240.0.0.2", "fd00::1"]
CLAIMS = st.dictionaries(st.sampled_from(IPS), st.integers(1, 5))


def instance(service_id: str, *virtual_ips: str, create_index: int = 10) -> Instance:
    return Instance(service_id, "node", "10.0.0.1", 20000, Health.PASSING, 1, 1, virtual_ips, create_index)


def test_the_earlier_keeps_the_address_and_the_other_is_told_whose_it_is() -> None:
    table = VirtualIPTable()
    table.claim("late", {"240.0.0.1": 9, "240.0.0.2": 9})
    assert table.claim("early", {"240.0.0.1": 3}) == {"late", "early"}
    assert table.owned("early") == ("240.0.0.1",)
    assert table.owned("late") == ("240.0.0.2",)
    assert table.lost("late") == {"240.0.0.1": "early"}


def test_the_address_goes_to_the_next_when_its_owner_gives_it_up() -> None:
    table = VirtualIPTable()
    table.claim("early", {"240.0.0.1": 3})
    table.claim("late", {"240.0.0.1": 9})
    assert table.claim("early", {}) == {"late", "early"}
    assert table.owner("240.0.0.1") == "late"


@given(st.lists(st.tuples(st.sampled_from(SERVICES), CLAIMS), max_size=12))
def test_the_owners_depend_on_the_claims_alone_not_on_how_they_came_about(
    history: list[tuple[str, dict[str, int]]],
) -> None:
    table = VirtualIPTable()
    for service, since in history:
        before = {ip: table.owner(ip) for ip in IPS}
        touched = table.claim(service, since)
        for ip in IPS:
            if table.owner(ip) != before[ip]:
                assert {before[ip], table.owner(ip)} - {None} <= touched
    final = dict(history)
    for ip in IPS:
        claimants = [(since[ip], service) for service, since in final.items() if ip in since]
        assert table.owner(ip) == (min(claimants)[1] if claimants else None)


def test_addresses_come_from_tags_and_from_the_chain_and_are_canonical() -> None:
    instances = ServiceInstances("api", (instance("1", "240.0.0.1", "FD00:0::1", create_index=7),))
    chain = DiscoveryChain("api", virtual_ips=("240.0.0.9", "240.0.0.1"))
    assert claims(instances, chain).since == {"240.0.0.1": 7, "fd00::1": 7, "240.0.0.9": 7}


def test_what_is_no_address_is_set_aside() -> None:
    found = claims(ServiceInstances("api", (instance("1", "not-an-ip", "240.0.0.1"),)), None)
    assert found.malformed == ("not-an-ip",)
    assert set(found.since) == {"240.0.0.1"}
