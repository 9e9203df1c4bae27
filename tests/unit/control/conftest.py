"""Fixtures of the control plane's tests."""

from __future__ import annotations

import pytest

from tests.unit.control.bench import Bench


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.service("web", "240.0.0.1")
    made.service("api", "240.0.0.2", "10.96.0.2")
    made.leaf("web")
    return made
