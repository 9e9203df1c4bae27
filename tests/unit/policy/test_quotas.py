"""Tests of the limits of what one service may ask of all others."""

from __future__ import annotations

from dataclasses import fields

import pytest

from xds.policy.quotas import DEFAULT_QUOTAS, Quotas, names, with_changes


def test_quotas_are_changed_by_name() -> None:
    changed = with_changes(DEFAULT_QUOTAS, {"routes": 7})
    assert changed.routes == 7
    assert changed.splits == DEFAULT_QUOTAS.splits
    with pytest.raises(KeyError, match="nothing"):
        with_changes(DEFAULT_QUOTAS, {"nothing": 1})
    assert names() == tuple(each.name for each in fields(Quotas))
