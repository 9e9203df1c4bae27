"""Health and weight as Consul computes them."""

from __future__ import annotations

import pytest

from tests.unit.facts import make_instance
from xds.envoy.endpoints import health_and_weight, load_assignment
from xds.mesh.facts import Health
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
def test_maintenance_is_not_taken_for_a_failure(health: Health, expected: core.HealthStatus) -> None:
    made = load_assignment("api", [make_instance("api", health=health)])
    message = endpoint.ClusterLoadAssignment.FromString(made.body)
    assert message.endpoints[0].lb_endpoints[0].health_status == expected


def test_an_address_that_is_none_takes_only_its_instance_out() -> None:
    instances = (make_instance("api", 1, address="a.host"), make_instance("api", 2))
    message = endpoint.ClusterLoadAssignment.FromString(load_assignment("api", instances).body)
    addresses = [e.endpoint.address.socket_address.address for e in message.endpoints[0].lb_endpoints]
    assert addresses == ["10.0.0.2"]


def test_no_instances_are_an_empty_answer_too() -> None:
    message = endpoint.ClusterLoadAssignment.FromString(load_assignment("api", ()).body)
    assert (message.cluster_name, len(message.endpoints)) == ("api", 1)
