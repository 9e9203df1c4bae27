"""Writes ``docker-compose.yml``: the demo's shop as containers, from the same description that the lab runs.

The services, their calls and every command are those of `xds.lab.shop` and `xds.lab.commands`; only images, users,
capabilities and networks are defined here. ``python -m xds.lab.compose > docker-compose.yml`` writes the file.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import yaml

from xds.lab import commands, shop
from xds.mesh.names import SIDECAR_SUFFIX

CONSUL_IMAGE = "hashicorp/consul:1.16.6"
SUBNET = "10.77.0.0/24"
CONSUL, GOSSAMER = "10.77.0.2", "10.77.0.3"
FIRST_HOST = 11
APPLICATION_UID = 1000
FRONT = "web"
"""The service that is reached from outside, past its sidecar, as a shop's front door is."""

HEADER = """\
# A small shop in a mesh, beside a Consul. Written by 'python -m xds.lab.compose > docker-compose.yml': edit that.
#
#   docker compose up --build --detach
#   curl http://localhost:8080/                                web calls api, api calls payments and db
#   docker compose exec consul consul intention delete web api
#   docker compose down
#
# Docker Compose 2.23.1 or newer. Each service of the shop is three containers in one network namespace: the
# application, one that redirects and ends (it alone has NET_ADMIN), and the sidecar under a user of its own. A demo:
# Consul runs without ACLs, and its state is in memory. xDS is over TLS, with a certificate of the mesh.
"""


def consul_configuration() -> dict[str, Any]:
    """Return Consul's configuration: the shop's services and its intentions, which deny everything else."""
    allowed: dict[str, list[str]] = {}
    for source, destination in shop.ALLOWED:
        allowed.setdefault(destination, []).append(source)
    intentions = [
        _intention(destination, [{"Name": source, "Action": "allow"} for source in sources])
        for destination, sources in allowed.items()
    ]
    return {
        "services": [_registration(service, instance) for service, instance in shop.INSTANCES],
        "config_entries": {"bootstrap": [*intentions, _intention("*", [{"Name": "*", "Action": "deny"}])]},
    }


def _intention(destination: str, sources: list[dict[str, str]]) -> dict[str, Any]:
    return {"Kind": "service-intentions", "Name": destination, "Sources": sources}


def _registration(service: str, instance: str) -> dict[str, Any]:
    virtual = {"address": shop.VIRTUAL_IPS[service], "port": shop.PORT}
    sidecar = {
        "port": commands.PUBLIC_PORT,
        "tagged_addresses": {"virtual": virtual},
        "proxy": {"mode": "transparent"},
    }
    return {
        "name": service,
        "id": f"{service}-{instance}",
        "address": _address(service, instance),
        "port": commands.APPLICATION_PORT,
        "connect": {"sidecar_service": sidecar},
    }


def _address(service: str, instance: str) -> str:
    return f"10.77.0.{FIRST_HOST + shop.INSTANCES.index((service, instance))}"


def compose() -> dict[str, Any]:
    """Return the compose file."""
    services: dict[str, Any] = {"consul": _consul(), "gossamer": _gossamer()}
    for service, instance in shop.INSTANCES:
        services |= _three(service, instance)
    return {
        "name": "gossamer-shop",
        "services": services,
        "networks": {"mesh": {"ipam": {"config": [{"subnet": SUBNET}]}}},
        "configs": {"shop": {"content": json.dumps(consul_configuration(), indent=2) + "\n"}},
    }


def _consul() -> dict[str, Any]:
    return {
        "image": CONSUL_IMAGE,
        "command": ["agent", "-dev", "-client=0.0.0.0", "-config-file=/consul/shop.json"],
        "configs": [{"source": "shop", "target": "/consul/shop.json"}],
        "networks": {"mesh": {"ipv4_address": CONSUL}},
        "ports": ["127.0.0.1:8500:8500"],
        "healthcheck": {"test": ["CMD", "consul", "info"], "interval": "2s", "retries": 30},
    }


def _gossamer() -> dict[str, Any]:
    return {
        "build": ".",
        "image": "gossamer",
        "command": commands.serve(["--consul", f"http://{CONSUL}:8500"], "0.0.0.0"),  # noqa: S104 - of its container
        "networks": {"mesh": {"ipv4_address": GOSSAMER}},
        "ports": [f"127.0.0.1:{commands.ADMIN_PORT}:{commands.ADMIN_PORT}"],
        "depends_on": {"consul": {"condition": "service_healthy"}},
        "healthcheck": {"interval": "2s", "retries": 30},
        "restart": "unless-stopped",
        **_locked_down(),
    }


def _three(service: str, instance: str) -> dict[str, Any]:
    """Return an application, its redirection and its sidecar."""
    name, front = f"{service}-{instance}", service == FRONT
    names = {called: f"{called}.virtual.consul" for called in shop.CALLS[service]}
    image = {"image": "gossamer", "pull_policy": "never"}  # built by the service of that name
    ours = {**image, "network_mode": f"service:{name}", **_locked_down()}
    application = {
        **image,
        "command": commands.application(
            name,
            speaks="tcp" if service in shop.PLAIN_TCP else "http",
            calls=shop.calls(service, names),
            address="0.0.0.0" if front else "127.0.0.1",  # noqa: S104 - of its container
        ),
        "user": str(APPLICATION_UID),
        "networks": {"mesh": {"ipv4_address": _address(service, instance)}},
        "depends_on": {"gossamer": {"condition": "service_healthy"}},
        "healthcheck": {"disable": True},
        **_locked_down(),
    }
    if names:
        application["extra_hosts"] = {host: shop.VIRTUAL_IPS[called] for called, host in names.items()}
    if front:
        application["ports"] = [f"127.0.0.1:8080:{commands.APPLICATION_PORT}"]
    past = [commands.APPLICATION_PORT] if front else []
    return {
        name: application,
        f"{name}-redirect": {
            **ours,
            "command": commands.redirect(exclude_inbound=past),
            "user": "0",
            "cap_add": ["NET_ADMIN"],
            "depends_on": {name: {"condition": "service_started"}},
            "healthcheck": {"disable": True},
        },
        f"{name}-sidecar": {
            **ours,
            "command": commands.sidecar(
                f"{name}{SIDECAR_SUFFIX}",
                ["--consul", f"http://{CONSUL}:8500"],
                xds=GOSSAMER,
                admin=f"unix:{commands.ENVOY_ADMIN_SOCKET}",
            ),
            "user": str(commands.ENVOY_UID),
            # Folder of the mesh's certificate authorities for Envoy.
            "environment": {"RUNTIME_DIRECTORY": str(PurePosixPath(commands.ENVOY_ADMIN_SOCKET).parent)},
            # The application shares the network, not the files: Envoy's admin interface shows the token.
            "tmpfs": [f"{PurePosixPath(commands.ENVOY_ADMIN_SOCKET).parent}:uid={commands.ENVOY_UID},mode=0700"],
            "depends_on": {f"{name}-redirect": {"condition": "service_completed_successfully"}},
            "healthcheck": {
                "test": ["CMD", *commands.envoy_ready()],
                "interval": "2s",
                "retries": 30,
            },
            "restart": "unless-stopped",
        },
    }


def _locked_down() -> dict[str, Any]:
    return {"cap_drop": ["ALL"], "read_only": True, "security_opt": ["no-new-privileges:true"]}


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes long text as a block, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature of yaml's
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def text() -> str:
    """Return the compose file's text."""
    return HEADER + "\n" + yaml.dump(compose(), Dumper=_Dumper, sort_keys=False, width=200, default_flow_style=None)


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - that is what it is for
