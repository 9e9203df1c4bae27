"""Tests of queries on facts."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.addresses import canonical_ip

OCTETS = st.one_of(st.integers(0, 260).map(str), st.sampled_from(["", "00", "01", "007", "1\n", " 1", "+1", "\u0663"]))


@given(
    st.one_of(
        st.lists(OCTETS, min_size=3, max_size=5).map(".".join),
        st.ip_addresses().map(str),
        st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
        st.text(),
    )
)
def test_an_address_is_valid_if_the_standard_library_parses_it(text: str) -> None:
    try:
        expected = str(ipaddress.ip_address(text))
    except ValueError:
        expected = None
    assert canonical_ip(text) == expected
