from xds.wire.envoy.config import core_pb2 as _core_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HeaderMutation(_message.Message):
    __slots__ = ("append",)
    APPEND_FIELD_NUMBER: _ClassVar[int]
    append: _core_pb2.HeaderValueOption
    def __init__(self, append: _Optional[_Union[_core_pb2.HeaderValueOption, _Mapping]] = ...) -> None: ...
