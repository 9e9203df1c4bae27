"""Adds access logs and tracing to complete listeners.

Consul's (``agent/xds/accesslogs``): one log in each filter that ends a chain, and one at the listener itself for
connections that no chain accepts (Envoy's response flag ``NR``).
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from xds.envoy.extensions import Extensions
from xds.envoy.overrides import OverrideError, decoded
from xds.envoy.resource import LISTENER, Resource, encode
from xds.envoy.tls import typed
from xds.mesh.config_entries import AccessLogs, ProxySettings
from xds.policy.formats import OF_LOGS, FormatError, checked
from xds.wire.envoy.config import accesslog_pb2 as accesslog
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import file_access_log_pb2, stream_access_log_pb2, tcp_proxy_pb2
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager

TRACING = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing"
DEFAULT_FORMAT = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


class Observation:
    """The logs and traces of one sidecar.

    Raises:
        OverrideError: its settings make none; the message says which and why.
    """

    def __init__(self, settings: ProxySettings, extensions: Extensions) -> None:
        self._extensions = extensions
        self._logs: list[accesslog.AccessLog] = []
        self._listener_logs: list[accesslog.AccessLog] = []
        self._tracing: manager.HttpConnectionManager.Tracing | None = None
        if settings.tracing_json:
            body = decoded("envoy_listener_tracing_json", settings.tracing_json, TRACING)
            self._tracing = manager.HttpConnectionManager.Tracing.FromString(body)
        if settings.access_logs is not None:
            sink = _sink(settings.access_logs)
            self._logs = [accesslog.AccessLog(name="Consul Listener Filter Log", typed_config=typed(sink))]
            if settings.access_logs.listener_logs:
                no_route = accesslog.AccessLogFilter(response_flag_filter=accesslog.ResponseFlagFilter(flags=["NR"]))
                self._listener_logs = [
                    accesslog.AccessLog(name="Consul Listener Log", filter=no_route, typed_config=typed(sink))
                ]

    def encode(
        self,
        made: listener.Listener,
        clusters: tuple[str, ...],
        direction: str,
        *,
        routes: tuple[str, ...] = (),
        of_all_upstreams: bool = False,
    ) -> Resource:
        """Encode a listener with its logs, its tracing, and the extensions for its direction.

        Args:
            made: the listener; it is changed.
            clusters: that it names.
            direction: inbound or outbound.
            routes: that it names.
            of_all_upstreams: whether it is right only once all upstreams have been read.
        """
        self._extensions.into_listener(made, direction)
        made.access_log.extend(self._listener_logs)
        if self._logs or self._tracing is not None:
            for chain in made.filter_chains:
                for each in chain.filters:
                    self._observe(each)
        whole = encode(LISTENER, made.name, made, clusters=clusters, routes=routes, of_all_upstreams=of_all_upstreams)
        return self._extensions.patched(whole, direction)

    def _observe(self, given: listener.Filter) -> None:
        http, tcp = manager.HttpConnectionManager(), tcp_proxy_pb2.TcpProxy()
        if given.typed_config.Unpack(http):
            http.access_log.extend(self._logs)
            if self._tracing is not None:
                http.tracing.CopyFrom(self._tracing)
            given.typed_config.CopyFrom(typed(http))
        elif given.typed_config.Unpack(tcp):
            tcp.access_log.extend(self._logs)
            given.typed_config.CopyFrom(typed(tcp))


def _sink(logs: AccessLogs) -> Message:
    if logs.text_format:
        text = _format("TextFormat", logs.text_format)
        text = text if text.endswith("\n") else text + "\n"
        log_format = core.SubstitutionFormatString(text_format_source=core.DataSource(inline_string=text))
    else:
        log_format = core.SubstitutionFormatString(json_format=_json(logs.json_format))
    if logs.sink == "file":
        if not logs.path:
            raise OverrideError("AccessLogs.Path: a log of type file needs a path")
        return file_access_log_pb2.FileAccessLog(path=logs.path, log_format=log_format)
    if logs.sink == "stderr":
        return stream_access_log_pb2.StderrAccessLog(log_format=log_format)
    return stream_access_log_pb2.StdoutAccessLog(log_format=log_format)


def _format(field: str, text: str) -> str:
    try:
        return checked(text, OF_LOGS)
    except FormatError as error:
        raise OverrideError(f"AccessLogs.{field}: {error}") from None


def _formats(data: Any) -> Any:
    """Return the same data with every text in it checked as a format."""
    if isinstance(data, dict):
        return {key: _formats(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_formats(value) for value in data]
    return _format("JSONFormat", data) if isinstance(data, str) else data


def _json(text: str) -> Struct:
    try:
        return ParseDict(_formats(json.loads(text)) if text else DEFAULT_FORMAT, Struct())
    except (ValueError, ParseError, RecursionError) as error:
        raise OverrideError(f"AccessLogs.JSONFormat: not an object in JSON: {error}") from None
