"""Virtual IPs: given once, never to somebody else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given as holds
from hypothesis import strategies as st

from xds.sources.file.virtual_ips import LAST, ExhaustedError, Given

NAMES = st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True)
ADDRESSES = st.sets(st.integers(1, 12).map(lambda number: f"240.0.0.{number}"), max_size=4)


def test_the_first_assigned_address_is_that_of_consul() -> None:
    assert Given().to(["web", "api"], {}).by_service == {"web": "240.0.0.1", "api": "240.0.0.2"}


@holds(st.lists(st.tuples(NAMES, ADDRESSES), max_size=5))
def test_an_address_is_never_assigned_to_a_second_service(edits: list[tuple[list[str], set[str]]]) -> None:
    given = Given()
    ever: dict[str, str] = {}
    for services, taken in edits:
        before, given = given.by_service, given.to(services, dict.fromkeys(taken, "another"))
        state = given.by_service
        assert set(services) <= state.keys()
        assert not taken & set(state.values())
        assert len(set(state.values())) == len(state)
        for service, address in before.items():
            assert address in taken or state[service] == address
        for service, address in state.items():
            assert ipaddress.ip_address(address) in ipaddress.ip_network("240.0.0.0/4")
            if before.get(service) != address:
                assert ever.setdefault(address, service) == service


def test_an_address_that_a_service_claims_itself_stays_its_own() -> None:
    given = Given().to(["web"], {})
    assert given.to([], {"240.0.0.1": "web"}).to(["web"], {}).by_service == {"web": "240.0.0.1"}


def test_an_exhausted_range_is_reported() -> None:
    with pytest.raises(ExhaustedError):
        Given({"web": str(LAST)}, LAST).to(["late"], {})
