"""Writes ``docker-compose.yml``: the demo's shop as containers, from the same description that the lab runs.

The services, their calls and every command are those of `xds.lab.shop` and `xds.lab.commands`; only images, users,
capabilities and networks are defined here. ``python -m xds.lab.compose > docker-compose.yml`` writes the file.
"""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from xds.lab import commands, shop
from xds.mesh.names import SIDECAR_SUFFIX
from xds.redirect.apply import MARK
from xds.redirect.nftables import TABLE

CONSUL_IMAGE = "hashicorp/consul:1.16.6"
SUBNET = "10.77.0.0/24"
CONSUL, GOSSAMER = "10.77.0.2", "10.77.0.3"
FIRST_HOST = 11
APPLICATION_UID = 1000
NETWORK_SUFFIX = "-network"
"""Suffix of the container that owns an application's network namespace."""
WITHOUT_NETWORK_S = 5
"""Seconds after which a process ends that has lost its network. The container that owns the network has been started
again by then: an engine does not start a container whose network namespace is missing, and does not try again."""
WAIT = f"until grep -q @{MARK} /proc/net/unix; do sleep 0.1; done"
"""Shell command that an application begins with. An engine that starts containers again does not wait for others, so
the application could otherwise start before the redirection is applied."""
CHECK_INTERVAL = "1s"
"""Interval of Consul's checks of sidecars. With Consul's default of ten seconds, a new sidecar would get no traffic for
that long."""
RESTART = "unless-stopped"
FRONT = "web"
"""The service that is reached from outside, past its sidecar, as a shop's front door is."""

HEADER = """\
# A small shop in a mesh, beside a Consul. Written by 'python -m xds.lab.compose > docker-compose.yml': edit that.
#
#   docker compose up --build --wait
#   curl http://localhost:8080/                                web calls api, api calls payments and db
#   docker compose exec consul consul intention delete web api
#   docker compose down
#
# Docker Engine 25 and Compose 2.23.1, or newer. Each service of the shop is three containers in one network namespace:
# one that owns the namespace and redirects in it (it alone has NET_ADMIN), the sidecar under a user of its own, and the
# application. A demo: Consul runs without ACLs, and its state is in memory. xDS is over TLS, with a certificate of the
# mesh.
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
    listener = f"{_address(service, instance)}:{commands.PUBLIC_PORT}"
    sidecar = {
        "port": commands.PUBLIC_PORT,
        "checks": [{"name": "sidecar", "tcp": listener, "interval": CHECK_INTERVAL}],
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
        # Otherwise the image's volume stays behind when the container is removed.
        "tmpfs": ["/consul/data"],
        "healthcheck": _health(["CMD", "consul", "info"]),
        "restart": RESTART,
    }


def _gossamer() -> dict[str, Any]:
    return {
        "build": ".",
        "image": "gossamer",
        "command": commands.serve(["--consul", f"http://{CONSUL}:8500"], "0.0.0.0"),  # noqa: S104 - of its container
        "networks": {"mesh": {"ipv4_address": GOSSAMER}},
        "ports": [f"127.0.0.1:{commands.ADMIN_PORT}:{commands.ADMIN_PORT}"],
        "depends_on": {"consul": {"condition": "service_healthy"}},
        "healthcheck": _health(["CMD", *commands.control_plane_ready()]),
        "restart": RESTART,
        **_locked_down(),
    }


def _three(service: str, instance: str) -> dict[str, Any]:
    """Return the owner of a network namespace, which redirects in it, the sidecar and the application."""
    name, front = f"{service}-{instance}", service == FRONT
    owner = f"{name}{NETWORK_SUFFIX}"
    names = {called: f"{called}.virtual.consul" for called in shop.CALLS[service]}
    image = {"image": "gossamer", "pull_policy": "never"}  # built by the service of that name
    network: dict[str, Any] = {
        **image,
        "command": commands.redirect(exclude_inbound=[commands.APPLICATION_PORT] if front else [], hold=True),
        "user": "0",
        "networks": {"mesh": {"ipv4_address": _address(service, instance)}},
        "depends_on": {"gossamer": {"condition": "service_healthy"}},
        "healthcheck": _health(["CMD", "nft", "list", "table", "inet", TABLE]),
        **_kept_running(),
        "cap_add": ["NET_ADMIN"],
    }
    if names:
        network["extra_hosts"] = {host: shop.VIRTUAL_IPS[called] for called, host in names.items()}
    if front:
        network["ports"] = [f"127.0.0.1:8080:{commands.APPLICATION_PORT}"]
    application = commands.application(
        name,
        speaks="tcp" if service in shop.PLAIN_TCP else "http",
        calls=shop.calls(service, names),
        address="0.0.0.0" if front else "127.0.0.1",  # noqa: S104 - of its container
    )
    inside = {**image, "network_mode": f"service:{owner}", **_kept_running()}
    return {
        owner: network,
        f"{name}-sidecar": {
            **inside,
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
            "depends_on": {owner: {"condition": "service_healthy", "restart": True}},
            "healthcheck": _health(_inside(commands.envoy_ready())),
        },
        name: {
            **inside,
            "command": ["sh", "-c", f"{WAIT}; exec {shlex.join(application)}"],
            "user": str(APPLICATION_UID),
            "depends_on": {
                owner: {"condition": "service_healthy", "restart": True},
                f"{name}-sidecar": {"condition": "service_healthy"},
            },
            "healthcheck": _health(_inside(commands.listens(commands.APPLICATION_PORT))),
        },
    }


def _inside(check: list[str]) -> list[str]:
    """Return the health check of a container in another one's network namespace.

    When the owner of the namespace is started again, it has a new one, and the others stay in the old one, which has
    no network. Docker does not notice that, so the check ends the container, and the restart policy starts it in the
    new namespace.
    """
    rejoin = f"grep -q eth0 /proc/net/dev || {{ sleep {WITHOUT_NETWORK_S}; kill 1; exit 1; }}"
    return ["CMD-SHELL", f"{rejoin}; exec {shlex.join(check)}"]


def _health(test: list[str]) -> dict[str, Any]:
    """Return a health check that runs each second until it passes once, then each ten seconds."""
    return {"test": test, "start_period": "120s", "start_interval": "1s", "interval": "10s", "timeout": "10s"}


def _kept_running() -> dict[str, Any]:
    """Return the settings of a container that is started again when it ends, and ends when it is asked to."""
    return {"init": True, "restart": RESTART, **_locked_down()}


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
