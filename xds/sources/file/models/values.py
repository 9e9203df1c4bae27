"""The kinds of values in a mesh file, and what every part of it does: refuse what it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from xds.mesh.addresses import is_ip
from xds.mesh.names import usable_name
from xds.policy.expressions import ExpressionError, compiled
from xds.policy.filters import FilterError, parse_filter
from xds.sources.decode.values import header_name, milliseconds

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
    """Refuses what it does not know, and takes no string for a number. A field without a value is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {key: value for key, value in data.items() if value is not None}
        return data

    def __hash__(self) -> int:
        # What pydantic can't hash it copies whenever it is a default, and most of a large file is defaults.
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


def _duration(text: str) -> str:
    if text and milliseconds(text) is None:
        raise ValueError("expected a duration such as 1m30s")
    return text


def _filter(text: str) -> str:
    try:
        parse_filter(text)
    except FilterError as error:
        raise ValueError(str(error)) from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]
HeaderText = Annotated[str, AfterValidator(_header_name)]
GoDuration = Annotated[str, AfterValidator(_duration)]
FilterText = Annotated[str, AfterValidator(_filter)]
PathText = Annotated[str, Field(pattern="^(/|$)")]


class EntryBase(Exact):
    Namespace: str = ""
    Partition: str = ""
    Meta: dict[str, str] = {}
