"""Compiles regular expressions (RE2, as in Envoy) that tenants wrote, with limits on their size.

RE2 matches in linear time, but its compiled programs can be large: a short text can become megabytes, in every sidecar
that has it.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

LONGEST = 4096
"""Characters of one expression."""
LARGEST_BYTES = 1 << 20
"""Memory that RE2 may use to compile one: some 40,000 instructions, in at most 10 ms."""

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = LARGEST_BYTES


class ExpressionError(Exception):
    """Text that is no regular expression, or one that is too large; the message says which."""


@functools.lru_cache(maxsize=1 << 12)
def compiled(text: str) -> Any:
    """Compile an expression.

    Returns:
        RE2's pattern; ``programsize`` is how many instructions it has.

    Raises:
        ExpressionError: it can't be compiled.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"it is longer than {LONGEST} characters")
    try:
        return re2.compile(text, options=_OPTIONS)
    except re2.error as error:
        raise ExpressionError(error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)) from None


class Allowance:
    """Budget that the expressions of one configuration share.

    Args:
        instructions: of all their programs together.
    """

    def __init__(self, instructions: int) -> None:
        self._instructions = instructions
        self._left = instructions

    def problem(self, text: str) -> str | None:
        """Take an expression; why it can't be used, ``None`` where it can.

        Once they are used up nothing more is compiled: to find out costs as well.
        """
        if self._left <= 0:
            return f"the regular expressions come to more than {self._instructions} instructions (quota expressions)"
        try:
            self._left -= compiled(text).programsize
        except ExpressionError as error:
            self._left = 0
            return f"the regular expression {text!r:.200} does not compile: {error}"
        if self._left < 0:
            return f"the regular expressions come to more than {self._instructions} instructions (quota expressions)"
        return None
