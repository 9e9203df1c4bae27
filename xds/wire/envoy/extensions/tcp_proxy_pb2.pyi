import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from xds.wire.envoy.config import accesslog_pb2 as _accesslog_pb2
from xds.wire.envoy.config import core_pb2 as _core_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TcpProxy(_message.Message):
    __slots__ = ("stat_prefix", "cluster", "access_log", "on_demand")
    class OnDemand(_message.Message):
        __slots__ = ("odcds_config", "timeout")
        ODCDS_CONFIG_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_FIELD_NUMBER: _ClassVar[int]
        odcds_config: _core_pb2.ConfigSource
        timeout: _duration_pb2.Duration
        def __init__(self, odcds_config: _Optional[_Union[_core_pb2.ConfigSource, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    STAT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    ACCESS_LOG_FIELD_NUMBER: _ClassVar[int]
    ON_DEMAND_FIELD_NUMBER: _ClassVar[int]
    stat_prefix: str
    cluster: str
    access_log: _containers.RepeatedCompositeFieldContainer[_accesslog_pb2.AccessLog]
    on_demand: TcpProxy.OnDemand
    def __init__(self, stat_prefix: _Optional[str] = ..., cluster: _Optional[str] = ..., access_log: _Optional[_Iterable[_Union[_accesslog_pb2.AccessLog, _Mapping]]] = ..., on_demand: _Optional[_Union[TcpProxy.OnDemand, _Mapping]] = ...) -> None: ...
