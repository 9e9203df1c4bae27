"""Parses the values of annotations: booleans, ports, networks, users, quantities and lists of these.

A value that is wrong is an error at admission, with what was expected, so that a pod never starts with a part of what
its owner wrote. Sources: Consul on Kubernetes, "Annotations and labels"; Go's strconv.ParseBool; Kubernetes,
"resource.Quantity".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xds.mesh.addresses import parse_network

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")

Ports = Mapping[str, int]
"""The named ports of a pod's containers."""


@dataclass(frozen=True, slots=True)
class Form:
    """Form of a value: what it is called in errors and in the documentation, and its parser.

    The parser raises `ValueError` for a value that does not have the form.
    """

    expected: str
    parse: Callable[[str, Ports], Any]


def _boolean(text: str, _ports: Ports) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def parse_port(text: str, ports: Ports) -> int:
    """Return a port: the name of a container's port or a number, in any base that Go takes.

    Raises:
        ValueError: it is neither.
    """
    if text in ports:
        return ports[text]
    found = int(text, 0)
    if not 0 < found < 65536:
        raise ValueError
    return found


def _items(text: str) -> list[str]:
    found = [item.strip() for item in text.split(",")]
    return [item for item in found if item]


def _port_list(text: str, ports: Ports) -> tuple[int, ...]:
    return tuple(dict.fromkeys(parse_port(item, ports) for item in _items(text)))


def _networks(text: str, _ports: Ports) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(parse_network(item)) for item in _items(text)))


def _users(text: str, _ports: Ports) -> tuple[int, ...]:
    found = tuple(int(item) for item in _items(text))
    if not all(0 <= user < 1 << 32 for user in found):
        raise ValueError
    return found


def _quantity(text: str, _ports: Ports) -> str:
    if not _QUANTITY.fullmatch(text) or text.startswith("-"):
        raise ValueError
    return text


def _count(text: str, _ports: Ports) -> int:
    if not text.isdecimal() or int(text) > 1 << 31:
        raise ValueError
    return int(text)


def _name(text: str, _ports: Ports) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


def _words(text: str, _ports: Ports) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _tags(text: str, _ports: Ports) -> tuple[str, ...]:
    found = (item.replace("\\,", ",").strip() for item in re.split(r"(?<!\\),", text))
    return tuple(item for item in found if item)


BOOLEAN = Form("true or false", _boolean)
PORTS = Form("ports, separated by commas: names of containers' ports, or numbers from 1 to 65535", _port_list)
NETWORKS = Form("addresses or networks (CIDR), separated by commas", _networks)
USERS = Form("users' numbers, separated by commas", _users)
QUANTITY = Form("a quantity, such as 100m or 64Mi", _quantity)
COUNT = Form("a whole number, 0 or greater", _count)
NAME = Form("a name of letters, digits, '-', '_' and '.'", _name)
WORDS = Form("words as in a shell", _words)
TAGS = Form("tags, separated by commas; '\\,' is a comma in a tag", _tags)
