from xds.wire.envoy.config import core_pb2 as _core_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileAccessLog(_message.Message):
    __slots__ = ("path", "log_format")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LOG_FORMAT_FIELD_NUMBER: _ClassVar[int]
    path: str
    log_format: _core_pb2.SubstitutionFormatString
    def __init__(self, path: _Optional[str] = ..., log_format: _Optional[_Union[_core_pb2.SubstitutionFormatString, _Mapping]] = ...) -> None: ...
