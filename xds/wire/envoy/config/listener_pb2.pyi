from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from xds.wire.envoy.config import accesslog_pb2 as _accesslog_pb2
from xds.wire.envoy.config import core_pb2 as _core_pb2
from xds.wire.envoy.type import type_pb2 as _type_pb2
from xds.wire.xds import matcher_pb2 as _matcher_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Filter(_message.Message):
    __slots__ = ("name", "typed_config")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPED_CONFIG_FIELD_NUMBER: _ClassVar[int]
    name: str
    typed_config: _any_pb2.Any
    def __init__(self, name: _Optional[str] = ..., typed_config: _Optional[_Union[_any_pb2.Any, _Mapping]] = ...) -> None: ...

class FilterChainMatch(_message.Message):
    __slots__ = ("prefix_ranges", "source_prefix_ranges", "destination_port")
    PREFIX_RANGES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PREFIX_RANGES_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_PORT_FIELD_NUMBER: _ClassVar[int]
    prefix_ranges: _containers.RepeatedCompositeFieldContainer[_core_pb2.CidrRange]
    source_prefix_ranges: _containers.RepeatedCompositeFieldContainer[_core_pb2.CidrRange]
    destination_port: _wrappers_pb2.UInt32Value
    def __init__(self, prefix_ranges: _Optional[_Iterable[_Union[_core_pb2.CidrRange, _Mapping]]] = ..., source_prefix_ranges: _Optional[_Iterable[_Union[_core_pb2.CidrRange, _Mapping]]] = ..., destination_port: _Optional[_Union[_wrappers_pb2.UInt32Value, _Mapping]] = ...) -> None: ...

class FilterChain(_message.Message):
    __slots__ = ("filter_chain_match", "filters", "transport_socket", "name")
    FILTER_CHAIN_MATCH_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_SOCKET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    filter_chain_match: FilterChainMatch
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    transport_socket: _core_pb2.TransportSocket
    name: str
    def __init__(self, filter_chain_match: _Optional[_Union[FilterChainMatch, _Mapping]] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., transport_socket: _Optional[_Union[_core_pb2.TransportSocket, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class ListenerFilterChainMatchPredicate(_message.Message):
    __slots__ = ("or_match", "not_match", "destination_port_range")
    class MatchSet(_message.Message):
        __slots__ = ("rules",)
        RULES_FIELD_NUMBER: _ClassVar[int]
        rules: _containers.RepeatedCompositeFieldContainer[ListenerFilterChainMatchPredicate]
        def __init__(self, rules: _Optional[_Iterable[_Union[ListenerFilterChainMatchPredicate, _Mapping]]] = ...) -> None: ...
    OR_MATCH_FIELD_NUMBER: _ClassVar[int]
    NOT_MATCH_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_PORT_RANGE_FIELD_NUMBER: _ClassVar[int]
    or_match: ListenerFilterChainMatchPredicate.MatchSet
    not_match: ListenerFilterChainMatchPredicate
    destination_port_range: _type_pb2.Int32Range
    def __init__(self, or_match: _Optional[_Union[ListenerFilterChainMatchPredicate.MatchSet, _Mapping]] = ..., not_match: _Optional[_Union[ListenerFilterChainMatchPredicate, _Mapping]] = ..., destination_port_range: _Optional[_Union[_type_pb2.Int32Range, _Mapping]] = ...) -> None: ...

class ListenerFilter(_message.Message):
    __slots__ = ("name", "typed_config", "filter_disabled")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPED_CONFIG_FIELD_NUMBER: _ClassVar[int]
    FILTER_DISABLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    typed_config: _any_pb2.Any
    filter_disabled: ListenerFilterChainMatchPredicate
    def __init__(self, name: _Optional[str] = ..., typed_config: _Optional[_Union[_any_pb2.Any, _Mapping]] = ..., filter_disabled: _Optional[_Union[ListenerFilterChainMatchPredicate, _Mapping]] = ...) -> None: ...

class AdditionalAddress(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: _core_pb2.Address
    def __init__(self, address: _Optional[_Union[_core_pb2.Address, _Mapping]] = ...) -> None: ...

class Listener(_message.Message):
    __slots__ = ("name", "address", "filter_chains", "listener_filters", "traffic_direction", "connection_balance_config", "access_log", "enable_reuse_port", "filter_chain_matcher", "additional_addresses")
    class ConnectionBalanceConfig(_message.Message):
        __slots__ = ("exact_balance",)
        class ExactBalance(_message.Message):
            __slots__ = ()
            def __init__(self) -> None: ...
        EXACT_BALANCE_FIELD_NUMBER: _ClassVar[int]
        exact_balance: Listener.ConnectionBalanceConfig.ExactBalance
        def __init__(self, exact_balance: _Optional[_Union[Listener.ConnectionBalanceConfig.ExactBalance, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FILTER_CHAINS_FIELD_NUMBER: _ClassVar[int]
    LISTENER_FILTERS_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_DIRECTION_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_BALANCE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ACCESS_LOG_FIELD_NUMBER: _ClassVar[int]
    ENABLE_REUSE_PORT_FIELD_NUMBER: _ClassVar[int]
    FILTER_CHAIN_MATCHER_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: _core_pb2.Address
    filter_chains: _containers.RepeatedCompositeFieldContainer[FilterChain]
    listener_filters: _containers.RepeatedCompositeFieldContainer[ListenerFilter]
    traffic_direction: _core_pb2.TrafficDirection
    connection_balance_config: Listener.ConnectionBalanceConfig
    access_log: _containers.RepeatedCompositeFieldContainer[_accesslog_pb2.AccessLog]
    enable_reuse_port: _wrappers_pb2.BoolValue
    filter_chain_matcher: _matcher_pb2.Matcher
    additional_addresses: _containers.RepeatedCompositeFieldContainer[AdditionalAddress]
    def __init__(self, name: _Optional[str] = ..., address: _Optional[_Union[_core_pb2.Address, _Mapping]] = ..., filter_chains: _Optional[_Iterable[_Union[FilterChain, _Mapping]]] = ..., listener_filters: _Optional[_Iterable[_Union[ListenerFilter, _Mapping]]] = ..., traffic_direction: _Optional[_Union[_core_pb2.TrafficDirection, str]] = ..., connection_balance_config: _Optional[_Union[Listener.ConnectionBalanceConfig, _Mapping]] = ..., access_log: _Optional[_Iterable[_Union[_accesslog_pb2.AccessLog, _Mapping]]] = ..., enable_reuse_port: _Optional[_Union[_wrappers_pb2.BoolValue, _Mapping]] = ..., filter_chain_matcher: _Optional[_Union[_matcher_pb2.Matcher, _Mapping]] = ..., additional_addresses: _Optional[_Iterable[_Union[AdditionalAddress, _Mapping]]] = ...) -> None: ...
