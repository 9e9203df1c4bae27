"""Decodes ``/v1/connect/intentions`` and the providers of JSON Web Tokens that they name."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from xds.mesh.intentions import (
    Action,
    ClaimCheck,
    Intention,
    Permission,
    RemoteKeys,
    TokenCheck,
    TokenLocation,
    TokenProvider,
)
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.sources.decode.requests import request_match
from xds.sources.decode.shapes import items, text
from xds.sources.decode.values import Fields, Limits, Problem, header_name

DEFAULT = "default"
KEY_TYPES = ("EC", "RSA", "OKP", "oct")


def intentions(data: Any, quotas: Quotas = DEFAULT_QUOTAS) -> tuple[Intention, ...]:
    """Decode ``/v1/connect/intentions``."""
    return ordered(intention(entry, quotas) for entry in items(data, "intentions"))


def ordered(found: Iterable[Intention | None]) -> tuple[Intention, ...]:
    """Return intentions in an order that does not depend on Consul's."""
    return tuple(sorted((each for each in found if each is not None), key=lambda i: (i.destination, i.source)))


def intention(entry: Any, quotas: Quotas = DEFAULT_QUOTAS) -> Intention | None:
    """Decode an intention; ``None`` for one that is not between services of this cluster and its default namespace.

    One that is not understood denies: to leave it out could let in whom it keeps out.

    Raises:
        TypeError: it does not name its services, so the whole list is refused.
    """
    if entry.get("SourcePeer") or entry.get("SourceSamenessGroup"):
        return (
            None  # They are about services elsewhere, and match none of this mesh (Consul, config_entry_intention.go).
        )
    spaces = ("SourceNS", "DestinationNS", "SourcePartition", "DestinationPartition")
    if {entry.get(space) or DEFAULT for space in spaces} - {DEFAULT, "*"}:
        return None
    source, destination = text(entry, "SourceName"), text(entry, "DestinationName")
    try:
        return _intention(entry, quotas)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        where = f"service-intentions/{destination}: source {source!r}"
        return Intention(source, destination, Action.DENY, problems=(f"{where} is denied, because {error!r}",))


def _intention(entry: Any, quotas: Quotas) -> Intention:
    source, destination = entry["SourceName"], entry["DestinationName"]
    problems: list[str] = []

    def report(what: str) -> None:
        problems.append(f"service-intentions/{destination}: source {source!r}: {what}")

    limits = Limits(quotas)
    fields = Fields(entry, "", report, limits=limits)
    given = items(entry.get("Permissions"), "Permissions")
    if len(given) > quotas.permissions:
        report(f"Permissions: {len(given)}, and the quota permissions is {quotas.permissions}")
    permissions = () if problems else tuple(_permission(each) for each in fields.each("Permissions"))
    tokens = _tokens(fields.part("JWT"))
    if problems:
        # A criterion that is not understood can't be left out, because the rest would match more requests.
        problems.append(f"service-intentions/{destination}: source {source!r} is denied for that")
        return Intention(source, destination, Action.DENY, problems=tuple(problems))
    action = Action.ALLOW if entry.get("Action") == "allow" else Action.DENY
    if permissions:
        action = Action.PERMISSIONS
    return Intention(source, destination, action, permissions, tokens)


def _permission(fields: Fields) -> Permission:
    action = fields.choice("Action", "allow", "deny")
    if not action:
        fields.report("Action", "expected 'allow' or 'deny'")
    found = Permission(action == "allow", request_match(fields.part("HTTP"), query=False), _tokens(fields.part("JWT")))
    fields.done()
    return found


def _tokens(fields: Fields) -> tuple[TokenCheck, ...]:
    found = tuple(_token(provider) for provider in fields.each("Providers"))
    fields.done()
    return found


def _token(fields: Fields) -> TokenCheck:
    name = fields.text("Name")
    if not name:
        fields.report("Name", "a JWT provider needs a name")
    claims = tuple(_claim(claim) for claim in fields.each("VerifyClaims"))
    fields.done()
    return TokenCheck(name, claims)


def _claim(fields: Fields) -> ClaimCheck:
    found = ClaimCheck(fields.texts("Path"), fields.text("Value"))
    if not found.path:
        fields.report("Path", "a claim needs a path")
    fields.done()
    return found


def token_provider(entry: Any, problem: Problem) -> TokenProvider | None:
    """Decode a ``jwt-provider`` entry; ``None``, with the reason reported, where it can't be used."""
    wrong: list[str] = []
    fields = Fields(entry, "", wrong.append)
    keys = fields.part("JSONWebKeySet")
    local, remote = keys.part("Local"), keys.part("Remote")
    encoded, locations = local.text("JWKS"), [_location(each) for each in fields.each("Locations")]
    forwarding, cache = fields.part("Forwarding"), fields.part("CacheConfig")
    skew = fields.number("ClockSkewSeconds")
    found = TokenProvider(
        name=fields.text("Name"),
        issuer=fields.text("Issuer"),
        audiences=fields.texts("Audiences"),
        keys=_decoded(local, encoded) if encoded else "",
        keys_file=local.text("Filename"),
        remote_keys=_remote(remote) if remote else None,
        locations=tuple(location for location, _ in locations),
        forward=any(forward for _, forward in locations),
        payload_header=forwarding.text("HeaderName"),
        pad_payload=forwarding.flag("PadForwardPayloadHeader"),
        clock_skew_s=30 if skew is None else skew,
        cache_size=cache.number("Size") or None,
    )
    wrong_header = header_name(found.payload_header) if found.payload_header else None
    if wrong_header is not None:
        forwarding.report("HeaderName", wrong_header)
    if not found.keys and not found.keys_file and found.remote_keys is None:
        fields.report("JSONWebKeySet", "expected the keys, Local or Remote")
    for what in wrong:
        problem(what)
    return None if wrong else found


def _decoded(fields: Fields, encoded: str) -> str:
    try:
        text = base64.b64decode(encoded, validate=True).decode()
        keys = json.loads(text)["keys"]
        if not any(key["kty"] in KEY_TYPES for key in keys):
            raise ValueError("no key of a known type")
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError):
        fields.report("JWKS", f"expected a JSON Web Key Set in base64, with a key of type {', '.join(KEY_TYPES)}")
        return ""
    return text


def _location(fields: Fields) -> tuple[TokenLocation, bool]:
    header, query, cookie = fields.part("Header"), fields.part("QueryParam"), fields.part("Cookie")
    found = TokenLocation(
        header=header.text("Name"),
        value_prefix=header.text("ValuePrefix"),
        query_parameter=query.text("Name"),
        cookie=cookie.text("Name"),
    )
    if sum(map(bool, (found.header, found.query_parameter, found.cookie))) != 1:
        fields.problem(f"{fields.where}: give the Name of one of Header, QueryParam, Cookie")
    wrong = header_name(found.header) if found.header else None
    if wrong is not None:
        header.report("Name", wrong)
    if not found.value_prefix.isprintable():
        header.report("ValuePrefix", "expected printable characters")
    return found, header.flag("Forward")


def _remote(fields: Fields) -> RemoteKeys:
    retry, cluster = fields.part("RetryPolicy"), fields.part("JWKSCluster")
    backoff, certificates = retry.part("RetryPolicyBackOff"), cluster.part("TLSCertificates")
    trusted = certificates.part("TrustedCA")
    uri = fields.text("URI")
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        fields.report("URI", f"expected an http or https address, not {uri!r}")
    first, most = backoff.duration("BaseInterval"), backoff.duration("MaxInterval")
    cached, connect = fields.duration("CacheDuration"), cluster.duration("ConnectTimeout")
    for where, name, value in (
        (backoff, "BaseInterval", first), (backoff, "MaxInterval", most),
        (fields, "CacheDuration", cached), (cluster, "ConnectTimeout", connect),
    ):  # fmt: skip
        if value is not None and value <= 0:
            where.report(name, "expected a duration of at least 1ms")
    if first and most and most < first:
        backoff.report("MaxInterval", "expected no less than BaseInterval")
    return RemoteKeys(
        uri=uri,
        request_timeout_ms=fields.number("RequestTimeoutMs") or None,
        cache_ms=cached,
        fetch_asynchronously=fields.flag("FetchAsynchronously"),
        retries=retry.number("NumRetries") or None,
        backoff_ms=first,
        backoff_most_ms=most,
        discovery=cluster.choice("DiscoveryType", "STRICT_DNS", "LOGICAL_DNS", "STATIC"),
        connect_timeout_ms=connect,
        ca_file=trusted.text("Filename"),
        ca_pem=trusted.text("InlineString"),
    )
