"""Types of values in a mesh file, and the base of its models, which refuses unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from xds.mesh.addresses import is_ip
from xds.mesh.names import WILDCARD, usable_name
from xds.policy.expressions import ExpressionError, compiled
from xds.policy.filters import FilterError, parse_filter
from xds.sources.decode.values import exact_milliseconds, header_name, milliseconds

Anything = dict[str, Any]


def _name(text: str) -> str:
    if not usable_name(text):
        raise ValueError("a name must not be empty and must hold no slash, backslash, '?', '#' or '%'")
    return text


def _ip(text: str) -> str:
    if text and not is_ip(text):
        raise ValueError("expected an IP address")
    return text


Name = Annotated[str, AfterValidator(_name)]
IP = Annotated[str, AfterValidator(_ip)]
Port = Annotated[int, Field(ge=0, le=65535)]
UsedPort = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0)]
Mode = Literal["", "transparent", "direct"]


class Exact(BaseModel):
    """Model that refuses unknown fields, and strings in place of numbers. A field without a value is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {key: value for key, value in data.items() if value is not None}
        return data

    def __hash__(self) -> int:
        # Pydantic copies unhashable defaults for every model, and most of a large file is defaults (benchmark
        # ``start``).
        return id(self)


def _expression(text: str) -> str:
    try:
        compiled(text)
    except ExpressionError as error:
        raise ValueError(f"the regular expression does not compile: {error}") from None
    return text


def _header_name(text: str) -> str:
    wrong = header_name(text.removeprefix(":"))
    if wrong is not None:
        raise ValueError(wrong)
    return text


LONGEST_DURATION_MS = (1 << 63) // 1_000_000
"""Go counts durations in nanoseconds, in 64 bits."""


def _duration(text: str) -> str:
    found = exact_milliseconds(text)
    if found is None:
        raise ValueError("expected a duration such as 1m30s")
    if found > LONGEST_DURATION_MS:
        raise ValueError("longer than a duration can be, which is 2562047h47m16s")
    return text


def _filter(text: str) -> str:
    try:
        parse_filter(text)
    except FilterError as error:
        raise ValueError(str(error)) from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]
HeaderText = Annotated[str, AfterValidator(_header_name)]


def _not_negative(text: str) -> str:
    if (milliseconds(text or "0s") or 0) < 0:
        raise ValueError("expected no negative duration")
    return text


GoDuration = Annotated[str, AfterValidator(_duration)]
FilterText = Annotated[str, AfterValidator(_filter)]
PositiveDuration = Annotated[GoDuration, AfterValidator(_not_negative)]
PathText = Annotated[str, Field(pattern="^(/|$)")]


def _method(text: Any) -> Any:
    return text.upper() if isinstance(text, str) else text


def _each_once(methods: list[str]) -> list[str]:
    repeated = sorted({method for method in methods if methods.count(method) > 1})
    if repeated:
        raise ValueError(f"{repeated[0]} is given more than once")
    return methods


def _meta(meta: dict[str, str]) -> dict[str, str]:
    if len(meta) > MOST_META:
        raise ValueError(f"at most {MOST_META} of them")
    for key, value in meta.items():
        if len(key.encode()) > LONGEST_META_KEY or len(value.encode()) > LONGEST_META_VALUE:
            raise ValueError(
                f"{key!r}: a key has at most {LONGEST_META_KEY} bytes, a value at most {LONGEST_META_VALUE}"
            )
    return meta


MOST_META, LONGEST_META_KEY, LONGEST_META_VALUE = 64, 128, 512
"""Consul's limits (``agent/structs``, ``validateConfigEntryMeta``)."""

HTTPMethods = Annotated[
    list[
        Annotated[
            Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"],
            BeforeValidator(_method),
        ]
    ],
    AfterValidator(_each_once),
]
"""HTTP methods; Consul writes them down in capitals (``Normalize``)."""
MetaTexts = Annotated[dict[str, str], AfterValidator(_meta)]


def _no_wildcard(text: str) -> str:
    if "*" in text:
        raise ValueError("'*' means every service only as the whole name in an intention")
    return text


ServiceName = Annotated[Name, AfterValidator(_no_wildcard)]
"""The name of one service."""


def _wildcard_alone(text: str) -> str:
    if text != WILDCARD:
        _no_wildcard(text)
    return text


NameOrWildcard = Annotated[Name, AfterValidator(_wildcard_alone)]


class EntryBase(Exact):
    Namespace: str = ""
    Partition: str = ""
    Meta: MetaTexts = {}
