"""Tests of how a sidecar connects to its control plane, and of what it says of one that does not fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.unit.control.bench import Bench
from tests.unit.facts import FREE_PORT
from xds.ads.server import AdsServer
from xds.ads.tls import MeshCertificate
from xds.cli.control_plane_check import mismatches
from xds.cli.control_plane_connection import ControlPlane, control_plane_flags
from xds.control.ads_adapter import AdsAdapter
from xds.envoy.bootstrap import ControlPlaneTls
from xds.envoy.names import ControlPlaneIdentity
from xds.mesh.addresses import HostPort
from xds.sources.authority import issue, new_authority

NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)
OTHER = new_authority(NOW)


def resolved(*arguments: str) -> ControlPlane:
    found: list[ControlPlane] = []

    @click.command()
    @control_plane_flags
    def command(control_plane: ControlPlane) -> None:
        found.append(control_plane)

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "mesh"),
    [
        ([], False),
        (["--xds", "localhost:18000"], False),
        (["--xds", "[::1]:18000"], False),
        (["--xds", "10.0.0.1:18000"], True),
        (["--xds", "gossamer.example:18000"], True),
        (["--xds", "127.0.0.1:18000", "--xds", "10.0.0.1:18000"], True),
        (["--xds", "10.0.0.1:18000", "--plaintext"], False),
        (["--tls", "mesh"], True),
    ],
)
def test_a_sidecar_connects_over_tls_beyond_loopback(arguments: Sequence[str], mesh: bool) -> None:
    found = resolved(*arguments)
    assert found.mesh is mesh
    assert found.files is None


def test_links_in_the_path_of_a_file_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "ca.pem").write_text("")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "ca.pem").symlink_to("data/ca.pem")
    monkeypatch.chdir(tmp_path)
    found = resolved("--xds-ca", "ca.pem").files
    assert found is not None
    assert found.ca == tmp_path / "ca.pem"


def test_certificate_files_replace_the_meshs_authorities() -> None:
    found = resolved("--xds", "10.0.0.1:18000", "--xds-ca", "/ca.pem", "--xds-sni", "name")
    assert not found.mesh
    assert found.files == ControlPlaneTls(Path("/ca.pem"), "name")


@asynccontextmanager
async def control_plane(service: str | None) -> AsyncIterator[HostPort]:
    """Start a control plane with the certificate of a service of the mesh, or in plain text."""
    server = AdsServer(AdsAdapter(Bench().plane))
    certificate = None
    if service is not None:
        certificate = MeshCertificate()
        certificate.use(issue(AUTHORITY, service, "dc1", NOW, 0.5).leaf)
    port = await server.start(FREE_PORT, certificate=certificate)
    try:
        yield HostPort("127.0.0.1", port)
    finally:
        await server.stop()


def mesh_tls(authority: Any = AUTHORITY, datacenter: str = "") -> ControlPlaneTls:
    return ControlPlaneTls(
        authority.trusted(NOW).pem(), identity=ControlPlaneIdentity(AUTHORITY.trust_domain, datacenter)
    )


@pytest.mark.parametrize(
    ("service", "tls", "words"),
    [
        ("gossamer", mesh_tls(), None),
        ("gossamer", mesh_tls(datacenter="dc1"), None),
        ("gossamer", mesh_tls(datacenter="dc2"), "/dc/dc1/svc/gossamer, not for the service 'gossamer' of"),
        ("web", mesh_tls(), "/svc/web, not for the service 'gossamer' of"),
        ("gossamer", mesh_tls(OTHER), "is not of an authority of the mesh"),
        (
            "gossamer",
            ControlPlaneTls("garbage", identity=ControlPlaneIdentity("x")),
            "can't use the authorities",
        ),
        ("gossamer", None, "expects TLS: give --tls mesh"),
        (None, mesh_tls(), "speaks plain text, not TLS: start it with --tls mesh"),
        (None, None, None),
    ],
)
async def test_contradictions_are_reported(service: str | None, tls: ControlPlaneTls | None, words: str | None) -> None:
    async with control_plane(service) as address:
        found = await asyncio.to_thread(mismatches, [address], tls)
    if words is None:
        assert found == []
    else:
        (problem,) = found
        assert words in problem
