import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from xds.wire.envoy.config import core_pb2 as _core_pb2
from xds.wire.envoy.extensions import dns_table_pb2 as _dns_table_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DnsFilterConfig(_message.Message):
    __slots__ = ("stat_prefix", "server_config", "client_config")
    class ServerContextConfig(_message.Message):
        __slots__ = ("inline_dns_table",)
        INLINE_DNS_TABLE_FIELD_NUMBER: _ClassVar[int]
        inline_dns_table: _dns_table_pb2.DnsTable
        def __init__(self, inline_dns_table: _Optional[_Union[_dns_table_pb2.DnsTable, _Mapping]] = ...) -> None: ...
    class ClientContextConfig(_message.Message):
        __slots__ = ("resolver_timeout", "max_pending_lookups", "typed_dns_resolver_config")
        RESOLVER_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
        MAX_PENDING_LOOKUPS_FIELD_NUMBER: _ClassVar[int]
        TYPED_DNS_RESOLVER_CONFIG_FIELD_NUMBER: _ClassVar[int]
        resolver_timeout: _duration_pb2.Duration
        max_pending_lookups: int
        typed_dns_resolver_config: _core_pb2.TypedExtensionConfig
        def __init__(self, resolver_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_pending_lookups: _Optional[int] = ..., typed_dns_resolver_config: _Optional[_Union[_core_pb2.TypedExtensionConfig, _Mapping]] = ...) -> None: ...
    STAT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    SERVER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    stat_prefix: str
    server_config: DnsFilterConfig.ServerContextConfig
    client_config: DnsFilterConfig.ClientContextConfig
    def __init__(self, stat_prefix: _Optional[str] = ..., server_config: _Optional[_Union[DnsFilterConfig.ServerContextConfig, _Mapping]] = ..., client_config: _Optional[_Union[DnsFilterConfig.ClientContextConfig, _Mapping]] = ...) -> None: ...
