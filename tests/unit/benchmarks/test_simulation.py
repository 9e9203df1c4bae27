"""The simulation comes to what can be worked out by hand, where something can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulation import CALLED, INSTANCES, Costs, World, simulate

COSTS = Costs(
    change=0.001,
    change_stream=0.0001,
    name=0.0,
    reconnect=0.001,
    watch=0.0,
    stream_mib=0.25,
    service_mib=0.05,
    base_mib=100,
    start=0.002,
)


def test_without_a_queue_a_change_takes_its_own_time() -> None:
    out = simulate(COSTS, World(1000, 1, 1))
    assert out.median_s == pytest.approx(COSTS.change + INSTANCES * CALLED * COSTS.change_stream, rel=0.2)
    assert out.connections == pytest.approx(1000, rel=0.01)
    assert out.reconnect_s == pytest.approx(1.0)


def test_work_beyond_the_capacity_of_a_core_queues_up() -> None:
    out = simulate(replace(COSTS, change=0.02), World(100_000, 1, 4, by_socket=True))
    assert out.reader > 1
    assert out.p99_s > 60
    assert out.limits(by_socket=True)[0] == (out.p99_s, "a second for a change")


def test_over_tcp_the_ports_run_out_first() -> None:
    out = simulate(COSTS, World(100_000, 32, 4))
    assert out.limits(by_socket=False)[0][1] == "ports for connections to Consul"
    assert out.limits(by_socket=True)[0][0] < 1
