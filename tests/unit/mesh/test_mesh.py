"""Swapping facts."""

from __future__ import annotations

from tests.unit.facts import ROOTS, make_instances
from xds.mesh.mesh import BASE_FACTS, DEFAULT_ALLOW, Key, Kind, Mesh
from xds.mesh.mesh import ROOTS as ROOTS_KEY


def test_equal_facts_are_not_a_change() -> None:
    mesh = Mesh()
    api = Key(Kind.INSTANCES, "api")
    assert mesh.apply({ROOTS_KEY: ROOTS, api: make_instances("api")}) == {ROOTS_KEY, api}
    assert mesh.apply({ROOTS_KEY: ROOTS, api: make_instances("api", "240.0.0.1")}) == {api}
    assert mesh.apply({api: make_instances("api", "240.0.0.1")}) == set()


def test_a_fact_can_be_removed() -> None:
    mesh = Mesh()
    key = Key(Kind.INSTANCES, "api")
    mesh.apply({key: make_instances("api")})
    assert mesh.apply({key: None}) == {key}
    assert mesh.instances("api") is None
    assert mesh.apply({key: None}) == set()


def test_a_fact_that_is_false_is_not_missing() -> None:
    mesh = Mesh()
    assert len(mesh.missing()) == len(BASE_FACTS)
    mesh.apply({DEFAULT_ALLOW: False})
    assert DEFAULT_ALLOW.kind.value not in mesh.missing()
    assert mesh.default_allow is False
