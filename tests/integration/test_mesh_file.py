"""A mesh on a file: edits under traffic, certificates, and the way to a real Consul and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from cryptography import x509

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from tests.integration.test_examples import EXAMPLES
from xds.lab import binaries
from xds.lab.application import dial
from xds.lab.commands import ADMIN_PORT, ENVOY_ADMIN_PORT, gossamer
from xds.lab.consul import LabConsul, version
from xds.lab.mesh import Lab, LeakError, get
from xds.lab.mesh_file import MeshFile
from xds.lab.network import Network, temporary_folder
from xds.lab.processes import eventually, run_to_end
from xds.lab.tour import certificate
from xds.mesh.facts import Health, Instance
from xds.policy.proxies import effective_settings
from xds.sources.file.document import parse
from xds.sources.file.facts import FileFacts, facts_of
from xds.sources.file.settings import roots_file

PORT = 80


@pytest.fixture(scope="module")
async def filed() -> AsyncIterator[Mesh]:
    """web and api on a mesh file, default deny, web may call api; virtual IPs by Gossamer."""
    async with Lab(mesh_file=True, serve_arguments=("--log-level", "debug")) as lab:
        web = await lab.member("web")
        api = await lab.member("api")
        await lab.catalog.intention("web", "api", "allow")
        await lab.served(web, api)
        yield Mesh(lab, web, api, await lab.virtual_ip(api))


def file_of(mesh: Mesh) -> MeshFile:
    assert isinstance(mesh.lab.catalog, MeshFile)
    return mesh.lab.catalog


async def troubles(mesh: Mesh) -> dict[str, str]:
    status, about = await get(mesh.lab.control, ADMIN_PORT, "/ready")
    assert status == 200
    return dict(about["troubles"])


async def test_an_edit_decides_who_may_call(filed: Mesh) -> None:
    await answers(filed.web.host, filed.api_ip, PORT, "api-1")
    async with await dial(filed.web.host, filed.api_ip, PORT) as held:
        await filed.lab.catalog.intention("web", "api", None)
        await answers(filed.web.host, filed.api_ip, PORT, None)
        assert await held.echo("still here") == "still here"
        await filed.lab.catalog.intention("web", "api", "allow")
        await answers(filed.web.host, filed.api_ip, PORT, "api-1")


async def test_a_bad_edit_is_refused_and_the_last_good_mesh_stays(filed: Mesh) -> None:
    mesh = file_of(filed)
    good = mesh.settings.mesh.read_text()
    mesh.settings.mesh.write_text(good.replace("default_intention_policy: deny", "default_intention_policy: denied"))

    seen = await eventually("the refusal to be told", lambda: troubles(filed))
    assert "mesh.yaml:1: default_intention_policy: expected 'allow' or 'deny', not 'denied'" in seen["mesh file"]
    await answers(filed.web.host, filed.api_ip, PORT, "api-1")
    mesh.write()
    await eventually("the trouble to be over", lambda: troubles(filed), until=lambda seen: not seen)


async def test_a_restart_changes_no_virtual_ip(filed: Mesh) -> None:
    lab = filed.lab
    await lab.stop_gossamer()
    await lab.start_gossamer()
    await lab.served(filed.web, filed.api)
    assert await lab.virtual_ip(filed.api) == filed.api_ip
    await answers(filed.web.host, filed.api_ip, PORT, "api-1")


async def test_a_rotation_breaks_no_connection_and_changes_secrets_only(filed: Mesh) -> None:
    lab = filed.lab

    async def sent(kind: str) -> dict[str, Any]:
        return dict((await lab.sidecars())[filed.web.sidecar_id]["resources"][kind]["sent"])

    before, clusters = await certificate(lab.control, filed.api.host.address), await sent("clusters")
    listeners = await sent("listeners")
    async with await dial(filed.web.host, filed.api_ip, PORT) as held:
        await lab.catalog.rotate_ca()

        async def rotated() -> bool:
            # Dialed all the while: whichever side has its new certificate first, the other takes it.
            async with await dial(filed.web.host, filed.api_ip, PORT) as new:
                assert await new.echo("new") == "new"
            return (await certificate(lab.control, filed.api.host.address))[1] != before[1]

        await eventually("the new authority to be shown", rotated)
        assert await held.echo("still here") == "still here"
    assert (await certificate(lab.control, filed.api.host.address))[0] == before[0], "the trust domain stays"
    assert (await sent("clusters"), await sent("listeners")) == (clusters, listeners)


async def test_sidecars_verify_the_control_plane_with_the_current_roots(filed: Mesh) -> None:
    """The old root is distrusted at once, so only an Envoy that followed the file can connect again."""
    lab = filed.lab
    settings = file_of(filed).settings
    roots = roots_file(settings.mesh)

    async def published() -> str:
        return str(roots.read_text())

    before = await published()
    await run_to_end(*gossamer("ca", "rotate", "--mesh", str(settings.mesh), "--distrust-old"))
    after = await eventually("the new root to be published", published, until=lambda found: found != before)
    assert before not in after
    await lab.stop_gossamer()
    await lab.start_gossamer()
    await lab.served(filed.web, filed.api)
    await answers(filed.web.host, filed.api_ip, PORT, "api-1")


async def test_a_leaf_is_shaped_like_consuls(filed: Mesh, denying: Mesh) -> None:
    shapes = [await _leaf_shape(each.lab, each.web) for each in (filed, denying)]
    assert shapes[0] == shapes[1]


async def _leaf_shape(lab: Lab, member: Any) -> dict[str, Any]:
    """Return what is the same in every leaf of one kind: extensions, whether they are critical, their content.

    Newer Consuls give a leaf no subject, older ones a name: the alternative name is critical where there is none.
    """
    _, shown = await get(member.host, ENVOY_ADMIN_PORT, "/config_dump?resource=dynamic_active_secrets")
    (leaf,) = [each["secret"] for each in shown["configs"] if each["name"] == "leaf"]
    chain = leaf["tls_certificate"]["certificate_chain"]["inline_string"]
    found = x509.load_pem_x509_certificates(chain.encode())[0]
    values: dict[Any, Callable[[Any], Any]] = {
        x509.KeyUsage: lambda value: value,
        x509.ExtendedKeyUsage: lambda value: sorted(usage.dotted_string for usage in value),
        x509.BasicConstraints: lambda value: value,
        x509.SubjectKeyIdentifier: lambda value: len(value.digest),
        x509.AuthorityKeyIdentifier: lambda value: len(value.key_identifier),
        x509.SubjectAlternativeName: lambda value: [
            uri.partition(".consul/")[2] for uri in value.get_values_for_type(x509.UniformResourceIdentifier)
        ],
    }
    lifetime = found.not_valid_after_utc - found.not_valid_before_utc
    return {
        "key": (type(found.public_key()).__name__, getattr(found.public_key(), "key_size", None)),
        "signature": found.signature_algorithm_oid.dotted_string,
        "hours": round(lifetime.total_seconds() / 3600, 1),
        "extensions": {
            type(each.value).__name__: (each.critical ^ _stands_in(found, each), values[type(each.value)](each.value))
            for each in found.extensions
        },
    }


def _stands_in(leaf: x509.Certificate, extension: x509.Extension[Any]) -> bool:
    """Whether an extension stands in for the subject, and is critical for that (RFC 5280, 4.2.1.6)."""
    return isinstance(extension.value, x509.SubjectAlternativeName) and not leaf.subject.rdns


# -- to a real Consul and back ----------------------------------------------------------------------------------------

OLD_CONSUL = """
default_intention_policy: allow
services:
  - name: web
    address: 10.77.0.11
    port: 8080
    connect:
      sidecar_service:
        port: 20000
        tagged_addresses: { virtual: { address: 240.0.0.9, port: 80 } }
        proxy:
          config: { mode: transparent, local_connect_timeout_ms: 1500 }
          upstreams: [{ destination_name: api, local_bind_port: 9191 }]
  - name: api
    id: api-1
    address: 10.77.0.12
    port: 8080
    weights: { passing: 3, warning: 1 }
    connect: { sidecar_service: { port: 20001, proxy: { config: { mode: transparent } } } }
config_entries:
  bootstrap:
    - Kind: proxy-defaults
      Name: global
      Config: { max_inbound_connections: 100 }
    - Kind: service-defaults
      Name: api
      Protocol: tcp
"""
"""Config entries for Consul 1.8, which has no mode and no intentions as config entries."""


@pytest.fixture(scope="module")
async def consul() -> AsyncIterator[LabConsul]:
    """Start a Consul alone, without ACLs."""
    folder = temporary_folder()
    try:
        with Network() as network:
            lab_consul = LabConsul(network.host("consul"), folder, acl=False)
            try:
                await lab_consul.start()
                yield lab_consul
            finally:
                await lab_consul.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", ["old-consul", "default-deny.yaml", "headless.yaml", "exposed-health-check.yaml"])
async def test_a_file_moves_to_a_consul_unchanged_and_back(consul: LabConsul, name: str) -> None:
    """Its lists go to ``consul services register`` and ``config write`` as they are; an export means the same."""
    if name != "old-consul" and await version() < (1, 11):
        pytest.skip("this Consul knows no transparent mode")
    text = OLD_CONSUL if name == "old-consul" else (EXAMPLES / name).read_text()
    data = yaml.safe_load(text)
    folder = temporary_folder()
    try:
        for service in data["services"]:
            (folder / "service.json").write_text(json.dumps({"service": service}))
            await _consul(consul, "services", "register", str(folder / "service.json"))
        for entry in data["config_entries"]["bootstrap"]:
            (folder / "entry.json").write_text(json.dumps(entry))
            await _consul(consul, "config", "write", str(folder / "entry.json"))
        wanted = facts_of(parse(name, text))

        async def exported() -> FileFacts:
            return facts_of(parse("export", await _export(consul)))

        # The agent tells the catalog a moment later.
        facts = await eventually(
            "the catalog to have it all",
            exported,
            until=lambda facts: facts.instances.keys() == wanted.instances.keys(),
        )
        assert {name: _comparable(facts, name) for name in wanted.instances} == {
            name: _comparable(wanted, name) for name in wanted.instances
        }
        assert facts.entries == wanted.entries
        assert facts.intentions == wanted.intentions
        assert (facts.datacenter, facts.service_names) == (wanted.datacenter, wanted.service_names)
    finally:
        for entry in data["config_entries"]["bootstrap"]:
            await _consul(consul, "config", "delete", "-kind", entry["Kind"], "-name", entry.get("Name", "mesh"))
        for service in data["services"]:
            await _consul(consul, "services", "deregister", "-id", service.get("id", service["name"]))
        shutil.rmtree(folder, ignore_errors=True)


async def _consul(consul: LabConsul, *arguments: str) -> str:
    command = [binaries.consul(), arguments[0], arguments[1], f"-http-addr={consul.url}", *arguments[2:]]
    return await run_to_end(*consul.host.command(*command))


async def _export(consul: LabConsul) -> str:
    return await run_to_end(*consul.host.command(*gossamer("mesh", "export", "--consul", consul.url)))


def _comparable(facts: FileFacts, service: str) -> list[Instance]:
    """Instances without what a registry adds by itself: nodes, indices, health, and virtual IPs of its own.

    A Consul agent merges the defaults into what it registers, sooner or later, so it is what the settings come to that
    is compared.
    """
    plain = []
    for instance in facts.instances[service].instances:
        sidecar = instance.sidecar
        given = tuple(address for address in instance.virtual_ips if address.ip == "240.0.0.9")
        assert sidecar is not None
        upstreams = tuple(
            replace(each, settings=replace(each.settings, protocol=each.settings.protocol or "tcp"))
            for each in sidecar.upstreams
        )
        settings = effective_settings(sidecar, facts.entries)
        effective = replace(sidecar, settings=settings, upstreams=upstreams, problems=())
        plain.append(
            replace(
                instance,
                create_index=0,
                health=Health.PASSING,
                virtual_ips=given,
                sidecar=effective,
            )
        )
    return sorted(plain, key=lambda instance: instance.service_id)


async def test_a_run_that_writes_a_credential_fails() -> None:
    """Show that the check of every lab at its end can fail."""
    lab = Lab(mesh_file=True)
    await lab.__aenter__()
    token = await lab.catalog.token_for("web")
    (lab.folder / "other.log").write_text(f"{token} -----BEGIN PRIVATE KEY-----")
    with pytest.raises(LeakError, match=r"a private key in other\.log; the token of web in other\.log"):
        await lab.__aexit__(None, None, None)
