"""Which client identities a public listener takes in its TLS handshake.

The RBAC filter alone comes too late for a TCP service: Envoy judges on the first byte from the client, but connects to
the application before that, so a server that speaks first has greeted a client that may not call it (Envoy issue
9023). So the same decision is put into the TLS context as well, as the SPIFFE IDs that a client certificate may carry.
A match list knows no "except"; for "everybody but these" a regular expression for the other names is spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from xds.envoy import names
from xds.policy.intentions import ConnectionPolicy
from xds.wire.envoy.type import matcher_pb2 as matcher


def admitted_identities(policy: ConnectionPolicy, trust_domain: str) -> list[matcher.StringMatcher] | None:
    """The SPIFFE IDs that ``policy`` lets in; ``None`` when it restricts nobody."""
    if policy.others_permitted:
        if not policy.exceptions:
            return None
        return [_matching(names.spiffe_pattern(not_among(map(names.in_path, policy.exceptions)), trust_domain))]
    if not policy.exceptions:
        return [matcher.StringMatcher(exact=f"spiffe://{trust_domain}/nobody")]
    return [_matching(names.spiffe_pattern(names.service_pattern(name), trust_domain)) for name in policy.exceptions]


def _matching(pattern: str) -> matcher.StringMatcher:
    return matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern))


def not_among(excluded: Iterable[str]) -> str:
    """A regular expression (RE2 has no negation) for every service name that is not one of ``excluded``.

    The names make a trie; what is not in it leaves it at some point, or ends where no name does.
    """
    trie: _Trie = {}
    for name in excluded:
        node = trie
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return _leaving(trie, may_end=False)


_Trie = dict[str, "_Trie"]


def _leaving(node: _Trie, *, may_end: bool) -> str:
    onward = {character: child for character, child in sorted(node.items()) if character}
    elsewhere = "".join(map(re.escape, onward))
    ways = [f"[^/{elsewhere}][^/]*"]
    ways += [re.escape(c) + _leaving(child, may_end="" not in child) for c, child in onward.items()]
    return f"(?:{'|'.join(ways)})" + ("?" if may_end else "")
