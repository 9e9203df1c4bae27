"""Tests of the limit of lines that others cause."""

from __future__ import annotations

import logging

from xds.workers.logs import KIND_BURST, SAME_TEXT_INTERVAL, LineLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(level: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("xds", level, "", 0, text, arguments, None)


def test_the_same_text_is_logged_once_a_minute() -> None:
    clock = Clock()
    limit = LineLimit(clock)
    assert limit.filter(line(logging.WARNING, "%s is refused", "web"))
    assert limit.filter(line(logging.WARNING, "%s is refused", "api"))
    for _ in range(10):
        clock.now += 1
        assert not limit.filter(line(logging.WARNING, "%s is refused", "web"))
    clock.now += SAME_TEXT_INTERVAL
    again = line(logging.WARNING, "%s is refused", "web")
    assert limit.filter(again)
    assert again.getMessage() == "web is refused (10 lines of this kind were left out before it)"


def test_lines_of_one_kind_are_logged_at_a_rate_whatever_is_in_them() -> None:
    clock = Clock()
    limit = LineLimit(clock)
    logged = [limit.filter(line(logging.WARNING, "%s is refused", f"{number}%s")) for number in range(1000)]
    assert sum(logged) == KIND_BURST
    assert limit.filter(line(logging.WARNING, "another kind"))
    clock.now += 10
    logged = [limit.filter(line(logging.WARNING, "%s is refused", f"{number}%s")) for number in range(1000, 2000)]
    assert sum(logged) == 10


def test_lines_for_debugging_are_all_logged() -> None:
    limit = LineLimit(Clock())
    assert all(limit.filter(line(logging.DEBUG, "same")) for _ in range(1000))
