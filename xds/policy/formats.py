"""Envoy's format strings: which of their command operators are evaluated, and for whom.

Envoy treats the value of a header as a format string and evaluates it where the route is: the router of one service is
evaluated in the sidecars of all its callers. Some operators read what belongs to the caller (environment, files,
metadata). So a string of another service's owner may only use the operators in `OF_REQUESTS`, which reveal nothing
beyond the request. The format of an access log, which the mesh's operator writes, may use all operators.

Source: Envoy, "Access logging: command operators", and what Envoy 1.36 to 1.40 take.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping


class Argument(enum.Enum):
    """Kinds of text in the parentheses of an operator."""

    NONE = "no argument"
    HEADER = "the name of a header, and of another after a '?'"
    PATH = "a path of names with colons between"
    STATE = "a name, and PLAIN, TYPED or FIELD after a colon"
    METADATA = "DYNAMIC, CLUSTER, ROUTE, UPSTREAM_HOST, LISTENER or VIRTUAL_HOST, and a path after a colon"
    ANY = "an argument or none"


class FormatError(Exception):
    """Text that is no permitted format string; the message says which operator and why."""


_PLAIN = """
    BYTES_RECEIVED BYTES_SENT CONNECTION_ID DOWNSTREAM_DIRECT_REMOTE_ADDRESS
    DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT
    DOWNSTREAM_LOCAL_PORT DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT
    DURATION PROTOCOL REQUESTED_SERVER_NAME RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_FLAGS STREAM_ID
    UPSTREAM_HOST UPSTREAM_REMOTE_ADDRESS
"""
_PLAIN_IN_LOGS = """
    ACCESS_LOG_TYPE BYTES_RETRANSMITTED CONNECTION_TERMINATION_DETAILS DOWNSTREAM_DETECTED_CLOSE_TYPE
    DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_HEADER_BYTES_SENT
    DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_IP_SAN
    DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT
    DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_EMAIL_SAN DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256
    DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SERIAL
    DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_SESSION_ID
    DOWNSTREAM_TLS_VERSION DOWNSTREAM_TRANSPORT_FAILURE_REASON DOWNSTREAM_WIRE_BYTES_RECEIVED
    DOWNSTREAM_WIRE_BYTES_SENT FILTER_CHAIN_NAME GRPC_STATUS_NUMBER HOSTNAME LOCAL_REPLY_BODY PACKETS_RETRANSMITTED
    REQUEST_DURATION REQUEST_HEADERS_BYTES REQUEST_TX_DURATION RESPONSE_DURATION RESPONSE_FLAGS_LONG
    RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES RESPONSE_TX_DURATION ROUNDTRIP_DURATION ROUTE_NAME
    TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT TRACE_ID UNIQUE_ID UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW
    UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_DETECTED_CLOSE_TYPE
    UPSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT
    UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_PORT
    UPSTREAM_LOCAL_URI_SAN UPSTREAM_PEER_CERT UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_ISSUER
    UPSTREAM_PEER_SUBJECT UPSTREAM_PEER_URI_SAN UPSTREAM_PROTOCOL UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT
    UPSTREAM_REMOTE_PORT UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TLS_CIPHER UPSTREAM_TLS_SESSION_ID
    UPSTREAM_TLS_VERSION UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_WIRE_BYTES_RECEIVED UPSTREAM_WIRE_BYTES_SENT
    VIRTUAL_CLUSTER_NAME
"""

OF_REQUESTS: Mapping[str, Argument] = {
    **dict.fromkeys(_PLAIN.split(), Argument.NONE),
    "REQ": Argument.HEADER,
    "RESP": Argument.HEADER,
    "START_TIME": Argument.NONE,
}
"""Operators for strings that another service's owner wrote: they reveal only the request and its connection."""

OF_LOGS: Mapping[str, Argument] = {
    **OF_REQUESTS,
    **dict.fromkeys(_PLAIN_IN_LOGS.split(), Argument.NONE),
    "TRAILER": Argument.HEADER,
    **dict.fromkeys(("CLUSTER_METADATA", "DYNAMIC_METADATA", "QUERY_PARAM", "UPSTREAM_METADATA"), Argument.PATH),
    **dict.fromkeys(("FILTER_STATE", "UPSTREAM_FILTER_STATE"), Argument.STATE),
    "METADATA": Argument.METADATA,
    **dict.fromkeys(
        ("DOWNSTREAM_PEER_CERT_V_END", "DOWNSTREAM_PEER_CERT_V_START", "EMIT_TIME", "EMIT_TIME_LOCAL"), Argument.ANY
    ),
    **dict.fromkeys(
        ("GRPC_STATUS", "START_TIME", "START_TIME_LOCAL", "UPSTREAM_PEER_CERT_V_END", "UPSTREAM_PEER_CERT_V_START"),
        Argument.ANY,
    ),
}
"""Operators for the format of an access log."""

LONGEST = 16384
"""Bytes of a header's value in Envoy's configuration."""

_OPERATOR = re.compile(r"%(?P<name>[A-Z][A-Z0-9_]*)(?P<parentheses>\((?P<argument>[^)]*)\))?(?P<length>:[0-9]+)?%")
_HEADER_NAME = r":?[!#$&'*+.^_`|~0-9A-Za-z-]+"
_ARGUMENTS = {
    Argument.HEADER: re.compile(rf"{_HEADER_NAME}(?:\?{_HEADER_NAME})?"),
    Argument.PATH: re.compile(r"[^:)]+(?::[^:)]+)*"),
    Argument.STATE: re.compile(r"[^:)]+(?::(?:PLAIN|TYPED|FIELD:[^:)]+))?"),
    Argument.METADATA: re.compile(r"(?:DYNAMIC|CLUSTER|ROUTE|UPSTREAM_HOST|LISTENER|VIRTUAL_HOST)(?::[^:)]+)+"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def checked(text: str, operators: Mapping[str, Argument]) -> str:
    """Return ``text`` as a format string in which only these ``operators`` are evaluated.

    A percent sign that begins no operator is a literal one and is escaped; ``%%`` is one that is escaped already.

    Raises:
        FormatError: it uses another operator, or one with an argument that it does not take, or is no header's value.
    """
    parts, position = [], 0
    while position < len(text):
        at = text.find("%", position)
        if at == -1:
            parts.append(text[position:])
            break
        parts.append(text[position:at])
        found = _OPERATOR.match(text, at)
        if found is not None:
            _check(found, operators)
            parts.append(found[0])
            position = found.end()
        else:
            parts.append("%%")
            position = at + (2 if text.startswith("%%", at) else 1)
    return "".join(parts)


def header_value(text: str) -> str:
    """Return ``text``, which another service's owner wrote, as the value of a header.

    Raises:
        FormatError: as for `checked`, or it can't be a header's value.
    """
    if _CONTROL.search(text):
        raise FormatError("a header's value holds no control characters")
    found = checked(text, OF_REQUESTS)
    if len(found.encode("utf-8", "surrogatepass")) > LONGEST:
        raise FormatError(f"longer than {LONGEST} bytes")
    return found


def _check(found: re.Match[str], operators: Mapping[str, Argument]) -> None:
    name, argument = found["name"], found["argument"]
    wanted = operators.get(name)
    if wanted is None:
        raise FormatError(
            f"the operator %{name}% is not allowed here, or is none of Envoy's; write %% for a percent sign"
        )
    if wanted is Argument.NONE:
        fits = found["parentheses"] is None and found["length"] is None
    else:
        fits = wanted is Argument.ANY or bool(argument and _ARGUMENTS[wanted].fullmatch(argument))
    if not fits:
        raise FormatError(f"the operator {found[0]!r} takes {wanted.value}")
