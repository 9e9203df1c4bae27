"""Which services a sidecar may call: the implicit upstreams.

Consul's rule (its intention topology): every service of the catalog that the intentions let the source call, an
intention with HTTP permissions counting as allow whatever they say, minus the service itself and ``consul``.
"""

from __future__ import annotations

from collections.abc import Iterable

from xds.mesh.intentions import Action
from xds.policy.intentions import Decisions

CONSUL = "consul"
"""The servers' own service: in every catalog, in no mesh."""


def implicit_upstreams(
    service: str, decisions: Decisions, service_names: Iterable[str], *, default_allow: bool
) -> frozenset[str]:
    """The names among ``service_names`` that ``service`` may call, ``decisions`` being those with it as source."""
    return frozenset(
        name
        for name in service_names
        if name not in (service, CONSUL) and decisions.action(name, default_allow=default_allow) is not Action.DENY
    )
