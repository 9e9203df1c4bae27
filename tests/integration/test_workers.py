"""Several workers behind one port: traffic, changes, and what is told of them together."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.helpers import answers, descendants
from xds.lab.commands import ADMIN_PORT
from xds.lab.mesh import Lab, Member, get
from xds.lab.processes import eventually

SERVICES = ("web", "api", "db", "job")


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with Lab(serve_arguments=("--workers", "2")) as made:
        members = [made.member(name, virtual_ip=f"240.9.0.{10 + n}") for n, name in enumerate(SERVICES)]
        await made.served(*await asyncio.gather(*members))
        yield made


def member(lab: Lab, service: str) -> Member:
    return next(each for each in lab.members if each.service == service)


def workers(lab: Lab) -> list[int]:
    assert lab.gossamer is not None
    return [
        pid
        for pid in descendants(lab.gossamer.pid)
        if b"xds.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def test_traffic_flows_whichever_worker_serves_a_sidecar(lab: Lab) -> None:
    assert len(workers(lab)) == 2
    for caller in SERVICES:
        for number, name in enumerate(SERVICES):
            if name != caller:
                await answers(member(lab, caller).host, f"240.9.0.{10 + number}", 80, f"{name}-1")


async def test_the_admin_server_reports_all_workers(lab: Lab) -> None:
    assert set(await lab.sidecars()) == {f"{name}-1-sidecar-proxy" for name in SERVICES}
    _, text = await get(lab.control, ADMIN_PORT, "/metrics")
    assert 'gossamer_streams{variant="delta"} 4.0' in str(text)


async def test_an_intention_is_followed_by_the_sidecars_of_every_worker(lab: Lab) -> None:
    await lab.consul.intention("*", "api", "deny")
    for caller in ("web", "db", "job"):
        await answers(member(lab, caller).host, "240.9.0.11", 80, None)
    await lab.consul.intention("*", "api", None)
    for caller in ("web", "db", "job"):
        await answers(member(lab, caller).host, "240.9.0.11", 80, "api-1")


async def test_a_killed_worker_is_replaced_and_its_sidecars_are_served_again(lab: Lab) -> None:
    before = workers(lab)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await answers(member(lab, "web").host, "240.9.0.11", 80, "api-1")

    async def replaced() -> bool:
        return len(set(workers(lab)) - set(before)) == 2 and len(await lab.sidecars()) == len(SERVICES)

    await eventually("other workers, with all sidecars", replaced, within_s=60)
    await lab.served(*lab.members)
    await lab.consul.intention("web", "db", "deny")
    await answers(member(lab, "web").host, "240.9.0.12", 80, None)
    await lab.consul.intention("web", "db", None)
    await answers(member(lab, "web").host, "240.9.0.12", 80, "db-1")
