"""Encodes the client identities that a public listener accepts in its TLS handshake.

The RBAC filter alone is too late for a TCP service: Envoy evaluates it on the first byte from the client, but connects
to the application before that, so a server that speaks first has greeted a denied client (Envoy issue 9023). So the
same decision is put into the TLS context as well, as the SPIFFE IDs that a client certificate may carry. A match list
has no exceptions, so a denial of some names is written as a regular expression for all other names.

Such expressions grow with the names. Above `LARGEST` the handshake accepts every service of the mesh, and only the RBAC
filter decides.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from xds.envoy import names
from xds.mesh.names import fold
from xds.policy.intentions import ConnectionPolicy
from xds.wire.envoy.type import matcher_pb2 as matcher

LARGEST = 512
"""Characters, of all names together. Envoy compiles an expression for as many in some 40 ms, on its main thread."""


def admitted_identities(policy: ConnectionPolicy, trust_domain: str) -> list[matcher.StringMatcher] | None:
    """Return the SPIFFE IDs that ``policy`` admits; ``None`` where the handshake has no restriction."""
    if policy.others_permitted:
        if not policy.exceptions or sum(map(len, policy.exceptions)) > LARGEST:
            return None
        return [_matching(names.spiffe_pattern(not_among(policy.exceptions), trust_domain))]
    if not policy.exceptions:
        return [matcher.StringMatcher(exact=f"spiffe://{trust_domain}/nobody")]
    if sum(map(len, policy.exceptions)) > LARGEST:
        return None
    return [_matching(names.spiffe_pattern(names.exact_pattern(name), trust_domain)) for name in policy.exceptions]


def _matching(pattern: str) -> matcher.StringMatcher:
    return matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern))


@dataclass(slots=True, eq=False)
class _Node:
    """Node of a trie over folded characters: a prefix that some excluded names share."""

    following: dict[str, _Node] = field(default_factory=dict)
    is_name: bool = False


_Texts = dict[str, "_Texts"]
"""Trie over the texts that represent a character in an ID. It is as deep as an escaped character is long."""


def not_among(excluded: Iterable[str]) -> str:
    """Return a regular expression (RE2 has no negation) for every name in an ID except those that represent one of
    ``excluded``.

    The names make a trie. A text that represents none of them leaves it at some point, or ends where no name ends. An
    excluded character may be written in several ways; all of them lead to the same node, so the expression grows with
    the length of the names and not with the number of their spellings.
    """
    root = _Node()
    for name in excluded:
        node = root
        for character in fold(name):
            node = node.following.setdefault(character, _Node())
        node.is_name = True
    order, todo = [], [root]
    while todo:  # without recursion: a name may be longer than Python's stack is deep
        node = todo.pop()
        order.append(node)
        todo += node.following.values()
    written: dict[_Node, str] = {}
    for node in reversed(order):
        written[node] = _leaving(node, written, may_end=node is not root and not node.is_name)
    return written[root]


def _leaving(node: _Node, written: dict[_Node, str], *, may_end: bool) -> str:
    """Return the expression for what may follow ``node``; ``written`` holds those of the nodes behind it."""
    onward = [_written(character) + written[child] for character, child in node.following.items()]
    return _group([*_ways_past(frozenset(node.following)), *onward], may_end=may_end)


@functools.lru_cache(maxsize=1 << 10)
def _written(character: str) -> str:
    return f"(?:{'|'.join(map(re.escape, names.encodings(character)))})"


@functools.lru_cache(maxsize=1 << 10)
def _ways_past(characters: frozenset[str]) -> tuple[str, ...]:
    """Return the expressions for every text that begins with none of these characters, however they are written."""
    texts: _Texts = {}
    for text in sorted(text for character in characters for text in names.encodings(character)):
        within = texts
        for each in text:
            within = within.setdefault(each, {})
    return tuple(_ways_out(texts))


def _ways_out(texts: _Texts) -> list[str]:
    ways = [_anything_but(texts) + names.SEGMENT + "*"]
    # Where nothing follows, the character is complete, and its node has the expression for what follows.
    ways += [re.escape(each) + _group(_ways_out(inner), may_end=True) for each, inner in texts.items() if inner]
    return ways


def _group(ways: list[str], *, may_end: bool) -> str:
    return f"(?:{'|'.join(ways)})" + ("?" if may_end else "")


def _anything_but(characters: Iterable[str]) -> str:
    """Return a class of every character of a segment that is none of these."""
    without = sorted(map(ord, {"/", *characters}))
    starts, ends = [0x21, *(code + 1 for code in without)], [*(code - 1 for code in without), 0x7E]
    ranges = (f"\\x{start:02x}-\\x{end:02x}" for start, end in zip(starts, ends, strict=True) if start <= end)
    return f"[{''.join(ranges)}]"
