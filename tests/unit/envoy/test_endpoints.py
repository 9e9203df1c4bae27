"""Health and weight as Consul computes them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.facts import make_instance
from xds.envoy.endpoints import health_and_weight, load_assignment, unreachable
from xds.mesh.facts import Health, Instance
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import endpoint_pb2 as endpoint


@pytest.mark.parametrize(
    ("health", "passing", "warning", "expected"),
    [
        (Health.PASSING, 1, 1, (True, 1)),
        (Health.PASSING, 7, 2, (True, 7)),
        (Health.WARNING, 7, 2, (True, 2)),
        (Health.CRITICAL, 7, 2, (False, 7)),
        (Health.MAINTENANCE, 7, 2, (False, 7)),
        (Health.WARNING, 7, 0, (False, 1)),
        (Health.PASSING, 1000, 1, (True, 128)),
    ],
)
def test_health_and_weight(health: Health, passing: int, warning: int, expected: tuple[bool, int]) -> None:
    instance = make_instance("api", health=health, weight_passing=passing, weight_warning=warning)
    assert health_and_weight(instance) == expected


@pytest.mark.parametrize(
    ("health", "expected"),
    [(Health.WARNING, core.HEALTHY), (Health.MAINTENANCE, core.DRAINING), (Health.CRITICAL, core.UNHEALTHY)],
)
def test_maintenance_does_not_count_as_a_failure(health: Health, expected: core.HealthStatus) -> None:
    made = load_assignment("api", [make_instance("api", health=health)])
    message = endpoint.ClusterLoadAssignment.FromString(made.body)
    assert message.endpoints[0].lb_endpoints[0].health_status == expected


def test_an_invalid_address_removes_only_its_instance() -> None:
    instances = (make_instance("api", 1, address="a.host"), make_instance("api", 2))
    message = endpoint.ClusterLoadAssignment.FromString(load_assignment("api", instances).body)
    addresses = [e.endpoint.address.socket_address.address for e in message.endpoints[0].lb_endpoints]
    assert addresses == ["10.0.0.2"]


def test_no_instances_are_an_empty_answer_too() -> None:
    message = endpoint.ClusterLoadAssignment.FromString(load_assignment("api", ()).body)
    assert (message.cluster_name, len(message.endpoints)) == ("api", 1)


@given(
    name=st.text(min_size=1, max_size=300),
    instances=st.lists(
        st.builds(
            make_instance,
            st.just("api"),
            address=st.one_of(st.ip_addresses().map(str), st.text(max_size=20)),
            port=st.integers(-1, 70_000),
            health=st.sampled_from(Health),
            weight_passing=st.integers(0, 200),
            weight_warning=st.integers(0, 200),
        )
    ),
    only_passing=st.booleans(),
)
def test_the_hand_written_encoding_equals_that_of_protobuf(
    name: str, instances: list[Instance], only_passing: bool
) -> None:
    made = load_assignment(name, instances, only_passing=only_passing)
    message = endpoint.ClusterLoadAssignment(cluster_name=name, endpoints=[endpoint.LocalityLbEndpoints()])
    for instance in instances:
        if unreachable(instance) is not None:
            continue
        gets_traffic, weight = health_and_weight(instance)
        if gets_traffic and not (only_passing and instance.health is Health.WARNING):
            status = core.HEALTHY
        else:
            status = core.DRAINING if instance.health is Health.MAINTENANCE else core.UNHEALTHY
        found = message.endpoints[0].lb_endpoints.add(health_status=status)
        found.load_balancing_weight.value = weight
        found.endpoint.address.socket_address.address = str(ipaddress.ip_address(instance.address))
        found.endpoint.address.socket_address.port_value = instance.port
    assert made.body == message.SerializeToString(deterministic=True)
