from xds.wire.envoy.config import core_pb2 as _core_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FilterStateValue(_message.Message):
    __slots__ = ("object_key", "format_string")
    OBJECT_KEY_FIELD_NUMBER: _ClassVar[int]
    FORMAT_STRING_FIELD_NUMBER: _ClassVar[int]
    object_key: str
    format_string: _core_pb2.SubstitutionFormatString
    def __init__(self, object_key: _Optional[str] = ..., format_string: _Optional[_Union[_core_pb2.SubstitutionFormatString, _Mapping]] = ...) -> None: ...
