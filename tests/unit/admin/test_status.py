"""Tests of the state that the admin server shows."""

from __future__ import annotations

import json

from tests.unit.control.bench import Bench
from xds.admin.status import readiness, sidecars
from xds.ads.messages import Request
from xds.envoy.resource import CLUSTER, TYPE_NAMES
from xds.mesh.facts import StreamRefused
from xds.mesh.mesh import Key, Kind


def test_a_server_is_ready_when_nothing_is_missing_and_it_is_not_stopping() -> None:
    assert readiness((), {}) == (True, {"ready": True, "not_read_yet": [], "troubles": {}})
    assert readiness((), {"agent": "refused"})[0], "what was read before is served"
    assert readiness(("roots",), {}) == (False, {"ready": False, "not_read_yet": ["roots"], "troubles": {}})
    ready, shown = readiness((), {}, stopping=True)
    assert not ready
    assert shown["stopping"]


def test_a_sidecar_that_waits_is_shown_with_the_reason() -> None:
    bench = Bench()
    bench.connect("web")
    (shown,) = sidecars(bench.plane)
    assert (shown["service"], shown["connected"], shown["served"], shown["registered"]) == ("web", True, False, False)
    assert "certificate of service 'web'" in shown["waits_for"]


def test_a_refused_sidecar_is_shown_as_not_connected() -> None:
    bench = Bench()
    bench.authorizes = False
    proxy = bench.connect("web")
    bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): StreamRefused("its token lacks service:write")})
    bench.plane.detach(proxy)
    (shown,) = sidecars(bench.plane)
    assert (shown["connected"], shown["served"]) == (False, False)
    assert "may not act for service 'web'" in shown["waits_for"]


def test_versions_are_shown_as_sent_and_then_as_acknowledged_or_rejected() -> None:
    bench = Bench()
    bench.service("web", "240.0.0.1")
    bench.leaf("web")
    proxy = bench.connect("web")
    proxy.session.receive(Request(CLUSTER))
    response = proxy.session.next_response()
    assert response is not None
    names = {resource.name for resource in response.resources}
    assert "local_app" in names

    def clusters() -> dict[str, dict[str, object]]:
        (shown,) = sidecars(bench.plane)
        json.dumps(shown)
        assert shown["served"]
        assert shown["resources"].keys() == set(TYPE_NAMES.values())
        found: dict[str, dict[str, object]] = shown["resources"]["clusters"]
        return found

    assert set(clusters()["sent"]) == names
    assert not clusters()["acknowledged"]
    received = proxy.session.receive(
        Request(CLUSTER, nonce=response.nonce, error="Error adding/updating cluster(s) local_app: wrong")
    )
    bench.plane.note(proxy, received)
    assert clusters()["acknowledged"].keys() == names - {"local_app"}
    assert clusters()["rejected"].keys() == {"local_app"}
    (shown,) = sidecars(bench.plane)
    assert any("wrong" in problem for problem in shown["set_aside"]["web"])
