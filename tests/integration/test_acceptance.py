"""Generated config entries are written to Consul and to a mesh file: both take, or both refuse, the same ones."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.generated import JWKS, accepted, of_kind
from tests.integration.test_generated import EXAMPLES
from xds.lab.consul import LabConsul, version
from xds.lab.network import Network, temporary_folder
from xds.sources.consul.client import ConsulError
from xds.sources.file import models
from xds.sources.file.document import RefusedError, parse
from xds.sources.file.models.defaults import MeshEntry
from xds.sources.file.models.intentions import JWTProvider

NEWEST = (1, 16)
"""The Consul whose rules the models have."""
PROVIDER = {"Issuer": "x", "JSONWebKeySet": {"Local": {"JWKS": JWKS}}}
OTHERS: list[dict[str, Any]] = [
    {"Kind": "mesh", "AllowEnablingPermissiveMutualTLS": True},
    *({"Kind": "service-defaults", "Name": name, "Protocol": "http"} for name in ("api", "web", "db", "missing")),
    *({"Kind": "jwt-provider", "Name": name, **PROVIDER} for name in ("api", "web", "db", "v1")),
]
"""The entries beside the one that is tried, unless it takes the place of one of these."""
NEWER = {"MaxRequestHeadersKB", "JWKSCluster", "UseSNI", "IgnoreCase", "Contains", "Incoming", "EnvoyExtensions"}
"""Fields that a newer Consul has, or has more values of, than that one."""
STRICTER = (
    "can't be the name of a header", "the regular expression does not compile", "RetryOnStatusCodes[",
    "input should be greater than or equal to 0", "VerifyClaims[",
)  # fmt: skip
"""Words of refusals of what Consul takes though it means nothing, or Envoy rejects it."""
KINDS = (
    models.ServiceRouter, models.ServiceSplitter, models.ServiceResolver, models.ServiceDefaults,
    models.ServiceIntentions, models.ProxyDefaults, MeshEntry, JWTProvider,
)  # fmt: skip


@pytest.fixture(scope="module")
def consul() -> Iterator[tuple[LabConsul, asyncio.Runner]]:
    folder = temporary_folder()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        runner = stack.enter_context(asyncio.Runner())
        if runner.run(version()) < NEWEST:
            pytest.skip("an older Consul has fewer fields and rules: name one of 1.16 with CONSUL_BIN")
        network = stack.enter_context(Network())

        async def made() -> LabConsul:
            found = LabConsul(network.host("consul"), folder, acl=False)
            await found.start()
            return found

        found = runner.run(made())
        stack.callback(lambda: runner.run(found.close()))
        yield found, runner


def takes(entry: dict[str, Any]) -> str | None:
    """Return why a mesh file with this entry is refused, ``None`` where it is taken."""
    others = [
        each
        for each in OTHERS
        if (each["Kind"], each.get("Name", "mesh")) != (entry["Kind"], entry.get("Name", "mesh"))
    ]
    document = {
        "default_intention_policy": "allow",
        "services": [],
        "config_entries": {"bootstrap": [*others, entry]},
    }
    try:
        parse("mesh.json", json.dumps(document))
    except RefusedError as error:
        return str(error)
    return None


def without_newer(data: Any) -> Any:
    """Return the same without the fields in `NEWER`."""
    if isinstance(data, dict):
        return {key: without_newer(value) for key, value in data.items() if key not in NEWER}
    return [without_newer(each) for each in data] if isinstance(data, list) else data


async def writes(consul: LabConsul, entry: dict[str, Any]) -> str | None:
    """Return why Consul refuses an entry, ``None`` where it takes it."""
    for other in OTHERS:
        await consul.entry(other)
    try:
        await consul.entry(entry)
    except ConsulError as error:
        return str(error)
    await consul.remove_entry(entry["Kind"], entry.get("Name", "mesh"))
    return None


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.data())
def test_both_accept_the_same_entries(consul: tuple[LabConsul, asyncio.Runner], kind: Any, data: st.DataObject) -> None:
    beside, runner = consul
    given_entry = data.draw(of_kind(kind, "api"))
    given_entry = without_newer(given_entry)
    for entry in filter(None, (given_entry, accepted(given_entry))):
        note(json.dumps(entry))
        by_us, by_consul = takes(entry), runner.run(writes(beside, entry))
        if by_us is not None and any(reason in by_us for reason in STRICTER):
            continue
        assert (by_us is None) == (by_consul is None), f"we: {by_us}\nConsul: {by_consul}"
