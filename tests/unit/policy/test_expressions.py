"""Regular expressions that others wrote cost no more than was allowed."""

from __future__ import annotations

import pytest

from xds.policy.expressions import LONGEST, Allowance, ExpressionError, compiled

LARGE = "((((a{30}){30}){30}){30})"


@pytest.mark.parametrize("text", ["(", "(?=a)", r"\1", "a{1001}", LARGE, "x" * (LONGEST + 1)])
def test_an_expression_that_does_not_compile_or_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        compiled(text)


def test_expressions_share_what_is_allowed() -> None:
    size = compiled("a+b").programsize
    allowance = Allowance(2 * size)
    assert allowance.problem("a+b") is None
    assert allowance.problem("a+b") is None
    assert "quota expressions" in str(allowance.problem("a+b"))
    assert "quota expressions" in str(allowance.problem("a"))


def test_an_expression_that_does_not_compile_is_named() -> None:
    assert "'(a' does not compile" in str(Allowance(100).problem("(a"))
