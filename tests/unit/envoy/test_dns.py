"""The table of names that Envoy answers from."""

from __future__ import annotations

import pytest

from xds.envoy.dns import dns_listener
from xds.wire.envoy.extensions import dns_filter_pb2


def table(*services: tuple[str, tuple[str, ...]]) -> dict[str, list[str]]:
    made = dns_listener(8653, services, "dc1", dual_stack=False)
    config = dns_filter_pb2.DnsFilterConfig()
    assert made.listener_filters[0].typed_config.Unpack(config)
    domains = config.server_config.inline_dns_table.virtual_domains
    names = [each.name for each in domains]
    assert len(names) == len(set(names)), "Envoy takes a name once"
    return {each.name: list(each.endpoint.address_list.address) for each in domains}


@pytest.mark.parametrize("suffix", ["virtual.consul", "virtual.default.ns.default.ap.dc1.dc.consul"])
def test_a_name_is_listed_in_lower_case_in_upper_case_and_as_spelled(suffix: str) -> None:
    found = table(("Upper_Case", ("240.0.0.1",)))
    spelled = {f"{each}.{suffix}" for each in ("Upper_Case", "upper_case", "UPPER_CASE")}
    assert spelled | {f"Upper_Case.{suffix}".upper()} <= found.keys()
    assert len(found) == 8


def test_a_name_with_addresses_of_one_family_answers_for_both() -> None:
    found = table(("api", ("240.0.0.1", "240.0.0.2")), ("six", ("fd00::1",)), ("both", ("240.0.0.3", "fd00::2")))
    assert found["api.virtual.consul"] == ["240.0.0.1", "240.0.0.2", "::ffff:240.0.0.1", "::ffff:240.0.0.2"]
    assert found["six.virtual.consul"] == ["fd00::1"]
    assert found["both.virtual.consul"] == ["240.0.0.3", "fd00::2"]
