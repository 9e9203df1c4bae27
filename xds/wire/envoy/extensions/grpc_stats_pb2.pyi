from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FilterConfig(_message.Message):
    __slots__ = ("stats_for_all_methods",)
    STATS_FOR_ALL_METHODS_FIELD_NUMBER: _ClassVar[int]
    stats_for_all_methods: _wrappers_pb2.BoolValue
    def __init__(self, stats_for_all_methods: _Optional[_Union[_wrappers_pb2.BoolValue, _Mapping]] = ...) -> None: ...
