"""Both variants of the protocol on one port, with real Envoys; and bootstraps that Envoy takes."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from xds.lab import binaries
from xds.lab.commands import ADMIN_PORT, gossamer
from xds.lab.mesh import get
from xds.lab.processes import run_to_end

PORT = 80


async def bootstrap(mesh: Mesh, *arguments: str) -> str:
    command = [*gossamer("bootstrap"), *arguments, "--consul", mesh.lab.consul.url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSUL_HTTP_TOKEN", mesh.lab.consul.token)
        return await run_to_end(*mesh.lab.control.command(*command))


async def test_a_state_of_the_world_envoy_is_served_like_any_other(allowing: Mesh) -> None:
    lab = allowing.lab
    member = await lab.member("sotw", virtual_ip="240.9.0.90", start=False)
    await lab.application("sotw-1", member.host)
    await lab.redirect(member)
    printed = await bootstrap(
        allowing, member.sidecar_id, "--node-name", member.node, "--xds", f"{lab.control.address}:18000",
        "--admin", f"{member.host.address}:19000", "--format", "json",
    )  # fmt: skip
    document = json.loads(printed)
    document["dynamic_resources"]["ads_config"]["api_type"] = "GRPC"
    file = lab.folder / "sotw.json"
    file.write_text(json.dumps(document))
    command = [binaries.envoy(), "-c", str(file), "--concurrency", "1", "--disable-hot-restart"]
    member.processes["sidecar"] = await lab.run("sotw-envoy", member.host, *command, uid=5678)
    await lab.served(member)
    assert (await lab.sidecars())[member.sidecar_id]["protocol"] == "state-of-the-world"
    await answers(allowing.web.host, "240.9.0.90", PORT, "sotw-1")
    await answers(member.host, allowing.api_ip, PORT, "api-1")
    await lab.consul.intention("sotw", "api", "deny")
    await answers(member.host, allowing.api_ip, PORT, None)
    await lab.consul.intention("sotw", "api", None)
    await answers(member.host, allowing.api_ip, PORT, "api-1")


@pytest.mark.parametrize("style", ["yaml", "json"])
async def test_envoy_takes_the_bootstrap(allowing: Mesh, style: str) -> None:
    web = allowing.web
    printed = await bootstrap(
        allowing, "--sidecar-for", "web-1", "--node-name", web.node, "--format", style,
        "--xds", "10.0.0.5:18000", "--xds", "gossamer.example:18000",
    )  # fmt: skip
    document = yaml.safe_load(printed)
    assert document["node"] == {"id": web.sidecar_id, "cluster": "web", "metadata": {"node_name": web.node}}
    file = allowing.lab.folder / f"bootstrap.{style}"
    file.write_text(printed)
    said = await run_to_end(binaries.envoy(), "--mode", "validate", "-c", str(file))
    assert "OK" in said


async def test_the_metrics_say_what_was_sent(allowing: Mesh) -> None:
    status, text = await get(allowing.lab.control, ADMIN_PORT, "/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['gossamer_streams{variant="delta"}']) >= 2
    assert float(samples['gossamer_responses_sent_total{type="listeners"}']) > 0
    assert float(samples['gossamer_responses_acknowledged_total{type="clusters"}']) > 0
    assert float(samples["gossamer_consul_watches"]) > 4
