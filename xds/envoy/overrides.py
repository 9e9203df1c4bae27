"""Decodes Envoy's own JSON that users give (Consul's ``envoy_*_json`` escape hatches), with the whole typed API.

The mesh's TLS and intentions are inserted into every filter chain of such a public listener. If that is impossible, the
listener is refused; Consul serves it unprotected.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from xds.envoy.resource import CLUSTER, LISTENER, Resource, encode
from xds.envoy.tls import typed
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager

PREFIX = "type.googleapis.com/"


class OverrideError(Exception):
    """Override that can't be used; the message names the setting and says why."""


def decoded(setting: str, text: str, type_name: str) -> bytes:
    """Return a message of Envoy's API, given as JSON, as bytes.

    Args:
        setting: what it is called, for messages.
        text: the JSON; an ``@type`` at the top may name the type.
        type_name: of the message, with its package.

    Raises:
        OverrideError: it is not such a message.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise OverrideError(f"{setting}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise OverrideError(f"{setting}: expected an object")
    given = str(data.pop("@type", type_name)).rpartition("/")[2]
    if given != type_name:
        raise OverrideError(f"{setting}: expected a {type_name}, not a {given}")
    for named in {type_name, *_types(data)}:
        load_type(setting, named)
    pool = importlib.import_module("envoy_data_plane.message_pool").default_message_pool
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Envoy itself decides about deprecated fields
            return bytes(pool.url_to_type[PREFIX + type_name].from_dict(data))
    except Exception as error:  # errors of the library, for any problem of the message
        reason = " ".join(str(error).split())
        raise OverrideError(f"{setting}: {reason or type(error).__name__}") from None


def _types(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        if isinstance(data.get("@type"), str):
            yield data["@type"].rpartition("/")[2]
        for value in data.values():
            yield from _types(value)
    elif isinstance(data, list):
        for value in data:
            yield from _types(value)


def load_type(setting: str, type_name: str) -> None:
    """Import the part of the API that contains a type; importing all of it takes seconds.

    Raises:
        OverrideError: there is no such type.
    """
    package = type_name.rpartition(".")[0]
    while package and not package.rpartition(".")[2].startswith("v"):
        package = package.rpartition(".")[0]  # a nested message
    try:
        importlib.import_module(f"envoy_data_plane.{package}")
    except ImportError:
        if not type_name.startswith("google.protobuf."):
            raise OverrideError(f"{setting}: Envoy's API has no {type_name}") from None


def cluster_from(setting: str, text: str, generated: Resource) -> Resource:
    """Return a cluster that a user gives in place of ``generated``.

    It keeps the generated one's name, by which listeners and routes refer to it, its TLS, and, where it uses EDS, its
    endpoints.

    Raises:
        OverrideError: it can't be used.
    """
    made = cluster.Cluster.FromString(decoded(setting, text, "envoy.config.cluster.v3.Cluster"))
    for field in ("transport_socket_matches", "transport_socket_matcher"):
        if _found(json.loads(text), field):
            raise OverrideError(f"{setting}: {field}: TLS is the mesh's; leave it out")
    ours = cluster.Cluster.FromString(generated.body)
    made.name = ours.name
    made.alt_stat_name = made.alt_stat_name or ours.alt_stat_name
    if ours.HasField("transport_socket"):
        made.transport_socket.CopyFrom(ours.transport_socket)
    uses_eds = made.WhichOneof("cluster_discovery_type") == "type" and made.type == cluster.Cluster.EDS
    if uses_eds and not ours.HasField("eds_cluster_config"):
        raise OverrideError(f"{setting}: type EDS: there are no endpoints for this cluster to be asked for")
    if uses_eds:
        made.eds_cluster_config.CopyFrom(ours.eds_cluster_config)
    return encode(CLUSTER, made.name, made, endpoints=generated.endpoints if uses_eds else "")


def listener_from(setting: str, text: str, name: str) -> listener.Listener:
    """Return a listener that a user gives, unchanged; ``name`` is used where it has none.

    Raises:
        OverrideError: it can't be used.
    """
    made = listener.Listener.FromString(decoded(setting, text, LISTENER.removeprefix(PREFIX)))
    made.name = made.name or name
    return made


ELSEWHERE = (
    "default_filter_chain", "fcds_config", "udp_listener_config", "api_listener", "internal_listener", "deprecated_v1",
)  # fmt: skip
"""Fields of a listener by which connections could bypass its filter chains, or come from elsewhere than a TCP socket.
"""


def protected(
    made: listener.Listener,
    setting: str,
    text: str,
    transport_socket: core.TransportSocket,
    requests: list[manager.HttpFilter],
    connections: listener.Filter,
    normalize: Callable[[manager.HttpConnectionManager], None],
) -> None:
    """Put the mesh's TLS and intentions into every chain of a listener that a user gives.

    Args:
        made: the listener.
        setting: what it is called, for messages.
        text: the JSON that it was made of.
        transport_socket: what every chain gets, in place of any of its own.
        requests: the filters that judge requests; they go first where a chain speaks HTTP.
        connections: the filter that judges connections; it goes first in any other chain.
        normalize: settles what a path means, before it is judged.

    Raises:
        OverrideError: there is something that can't be protected.
    """
    given = json.loads(text)
    for field in ELSEWHERE:
        if any(_plain(key) == _plain(field) for key in given):
            raise OverrideError(
                f"{setting}: {field}: connections there can't be judged by the intentions; leave it out"
            )
    own_filters = [each for each in _found(given, "upgrade_configs") if _found(each, "filters")]
    if own_filters:
        raise OverrideError(f"{setting}: upgrade_configs: filters of its own go past the intentions; leave them out")
    names_there = {each.name for each in requests} & set(_found_keys(given, "typed_per_filter_config"))
    if names_there:
        raise OverrideError(f"{setting}: typed_per_filter_config: {min(names_there)} is the mesh's; leave it out")
    for field in ("rds", "scoped_routes", "vhds"):
        if _found(given, field):
            raise OverrideError(f"{setting}: {field}: routes from elsewhere could go past the intentions")
    if not made.filter_chains:
        raise OverrideError(f"{setting}: filter_chains: there are none")
    for number, chain in enumerate(made.filter_chains):
        where = f"{setting}: filter_chains[{number}]"
        chain.transport_socket.CopyFrom(transport_socket)
        speaks_http = False
        for each in chain.filters:
            if not each.HasField("typed_config"):
                raise OverrideError(f"{where}: filter {each.name!r} has no typed_config, so nothing can be said of it")
            http = manager.HttpConnectionManager()
            if each.typed_config.Unpack(http):
                speaks_http = True
                normalize(http)
                others = list(http.http_filters)
                del http.http_filters[:]
                http.http_filters.extend([*requests, *others])
                each.typed_config.CopyFrom(typed(http))
        if not chain.filters:
            raise OverrideError(f"{where}: filters: there are none")
        if not speaks_http:
            others_here = list(chain.filters)
            del chain.filters[:]
            chain.filters.extend([connections, *others_here])


def _plain(key: str) -> str:
    """Return a field's name without the differences in spelling that the JSON decoder ignores."""
    return re.sub("[^a-z0-9]", "", key.lower())


def _found(data: Any, field: str) -> list[Any]:
    """Yield every value of a field, at any depth and in any spelling."""
    if isinstance(data, list):
        return [value for each in data for value in _found(each, field)]
    if not isinstance(data, dict):
        return []
    here = [value for key, value in data.items() if _plain(key) == _plain(field)]
    return here + [value for each in data.values() for value in _found(each, field)]


def _found_keys(data: Any, field: str) -> list[str]:
    return [key for each in _found(data, field) if isinstance(each, dict) for key in each]
