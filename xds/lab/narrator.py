"""Prints the steps of the demo, each with its expectation and observation, and a table at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click

PATIENCE_S = 2.0
"""Seconds between two lines about something that takes time."""


@dataclass(frozen=True, slots=True)
class Step:
    """Check that a tour makes."""

    what: str
    seconds: float
    ok: bool


class Narrator:
    """Printer of steps, and record of their results."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._what = ""
        self._began = time.monotonic()
        self._started = self._began

    def say(self, text: str) -> None:
        """Print something beside the steps."""
        click.echo(text)

    def begin(self, what: str, how: str, expected: str) -> None:
        """Print a step before it is done."""
        self._what, self._began = what, time.monotonic()
        click.echo(f"\n{len(self.steps) + 1}. {click.style(what, bold=True)}")
        click.echo(f"   {click.style(how, dim=True)}")
        click.echo(f"   expected: {expected}")

    def end(self, seen: str, *, ok: bool) -> None:
        """Print what was observed, and whether it was as expected."""
        self.steps.append(Step(self._what, time.monotonic() - self._began, ok))
        verdict = click.style("as expected", fg="green") if ok else click.style("NOT AS EXPECTED", fg="red", bold=True)
        click.echo(f"   seen:     {seen}  [{verdict}]")

    @asynccontextmanager
    async def patience(self, what: str) -> AsyncIterator[None]:
        """Print now and then that something is still in progress."""

        async def repeat() -> None:
            began = time.monotonic()
            while True:
                await asyncio.sleep(PATIENCE_S)
                click.echo(f"   ... {what}, {time.monotonic() - began:.0f} s so far")

        repeating = asyncio.create_task(repeat())
        try:
            yield
        finally:
            repeating.cancel()
            await asyncio.gather(repeating, return_exceptions=True)

    def summary(self) -> bool:
        """Print the table; whether every step went as expected."""
        width = max((len(step.what) for step in self.steps), default=0)
        click.echo("\n" + "-" * (width + 20))
        for number, step in enumerate(self.steps, start=1):
            verdict = click.style("ok", fg="green") if step.ok else click.style("FAILED", fg="red", bold=True)
            click.echo(f"{number:>2}  {step.what:<{width}}  {step.seconds:>5.1f} s  {verdict}")
        failed = sum(not step.ok for step in self.steps)
        total = time.monotonic() - self._started
        click.echo(f"{len(self.steps) - failed} of {len(self.steps)} as expected, {total:.0f} s in all")
        return not failed and bool(self.steps)
