import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from xds.wire.envoy.config import core_pb2 as _core_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnDemand(_message.Message):
    __slots__ = ("odcds",)
    ODCDS_FIELD_NUMBER: _ClassVar[int]
    odcds: OnDemandCds
    def __init__(self, odcds: _Optional[_Union[OnDemandCds, _Mapping]] = ...) -> None: ...

class OnDemandCds(_message.Message):
    __slots__ = ("source", "timeout")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    source: _core_pb2.ConfigSource
    timeout: _duration_pb2.Duration
    def __init__(self, source: _Optional[_Union[_core_pb2.ConfigSource, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
