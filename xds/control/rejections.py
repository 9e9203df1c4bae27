"""Leaves out of a sidecar's own resources what its Envoy rejected: the safety net below the checks of values.

Envoy rejects a listener as a whole, even because of one part that a user gave, such as an access log whose file can't
be opened. So these parts are left out one after the other until Envoy accepts it, first those that Envoy's message
points at. A listener that is rejected without any of them is replaced by one that admits no caller. A rejection by one
Envoy changes nothing for others, because a proxy can claim anything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from xds.ads.messages import Rejection
from xds.envoy.resource import EXTENSION, LISTENER
from xds.mesh.config_entries import ProxySettings


class Part(enum.Enum):
    """Parts of listeners that a user gives; the value is the name for operators."""

    ACCESS_LOGS = "AccessLogs"
    TRACING = "envoy_listener_tracing_json"
    EXTENSIONS = "EnvoyExtensions"
    """Extensions without ``Required``. A required extension may be what keeps callers out, so it is never left out."""
    OVERRIDES = "the listener given as JSON"
    HEADERS = "max_request_headers_kb"


_HINTS = {
    Part.ACCESS_LOGS: re.compile(r"access.?log|format|StreamInfo|command|open file|file.*log", re.IGNORECASE),
    Part.TRACING: re.compile(r"trac(?:ing|er)|zipkin|opentelemetry|datadog", re.IGNORECASE),
    Part.EXTENSIONS: re.compile(r"lua|script|rate.?limit|token_bucket|otel|extension", re.IGNORECASE),
    Part.HEADERS: re.compile(r"max_request_headers", re.IGNORECASE),
}
"""Expressions for the words of Envoy's that point at a part."""

UNAVAILABLE = re.compile(r"cannot bind|Address already in use|Address not available|Permission denied", re.IGNORECASE)
"""Envoy's words when the host is the obstacle: no other listener would be better."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Parts that are left out of a sidecar's own resources, and the reasons."""

    parts: frozenset[Part] = frozenset()
    closed: frozenset[str] = frozenset()
    """Listeners that are replaced by ones that admit no caller."""
    without_tokens: bool = False
    """Whether no JSON Web Token is verified, so that what needs one is denied."""
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Rejections:
    """Parts of its own resources that one proxy rejected."""

    left_out: LeftOut = LeftOut()
    _given: tuple[object, ...] = ()
    """Settings that users gave when something was last rejected; different ones are another chance."""
    _to_try: list[frozenset[Part]] = field(default_factory=list)

    def follow(self, settings: ProxySettings, listeners: Iterable[object]) -> None:
        """Forget what was rejected if what users give differs; ``listeners`` is what they give as JSON."""
        given = (
            settings.access_logs, settings.tracing_json, settings.extensions, settings.public_listener_json,
            settings.max_request_headers_kb, *listeners,
        )  # fmt: skip
        if given != self._given:
            self._given = given
            self.left_out, self._to_try = LeftOut(), []

    def rejected(self, rejections: Iterable[Rejection], present: Iterable[Part]) -> bool:
        """Take what was rejected of the resources as they are now.

        Args:
            rejections: of this proxy's own resources, in their current versions.
            present: the parts that they hold.

        Returns:
            Whether something else is left out now.
        """
        before = self.left_out
        for each in rejections:
            if each.type_url == EXTENSION and not self.left_out.without_tokens:
                why = f"Envoy rejected the verification of tokens, so what needs one is denied: {each.reason}"
                self.left_out = _with(self.left_out, why, without_tokens=True)
        listeners = [each for each in rejections if each.type_url == LISTENER and not UNAVAILABLE.search(each.reason)]
        if listeners:
            self._leave_out_more(listeners, frozenset(present))
        return self.left_out != before

    def _leave_out_more(self, listeners: list[Rejection], present: frozenset[Part]) -> None:
        reason = listeners[0].reason
        if not self.left_out.parts and not self._to_try:
            self._to_try = list(_attempts(reason, present))
        if self._to_try:
            parts = self._to_try.pop(0)
            words = " and ".join(sorted(part.value for part in parts))
            why = f"{words}: left out, because Envoy rejected {listeners[0].name!r}: {reason}"
            self.left_out = LeftOut(parts, self.left_out.closed, self.left_out.without_tokens, (why,))
            return
        names = {each.name for each in listeners}
        why = f"Envoy rejects {' and '.join(sorted(names))}, which is closed: {reason}"
        self.left_out = _with(self.left_out, why, closed=self.left_out.closed | names)


def _with(
    left_out: LeftOut, why: str, *, closed: frozenset[str] | None = None, without_tokens: bool = False
) -> LeftOut:
    return LeftOut(
        left_out.parts,
        left_out.closed if closed is None else closed,
        left_out.without_tokens or without_tokens,
        (*left_out.reasons, why),
    )


def _attempts(reason: str, present: frozenset[Part]) -> Iterator[frozenset[Part]]:
    """Yield what to leave out in turn: each part alone, those that Envoy's words point at first, then all of them."""
    pointed_at = [part for part in Part if part in present and part in _HINTS and _HINTS[part].search(reason)]
    for part in (*pointed_at, *(part for part in Part if part in present and part not in pointed_at)):
        yield frozenset((part,))
    if len(present) > 1:
        yield present
