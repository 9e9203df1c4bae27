"""Runs child processes that end with their owner, and waits for conditions."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ProcessError(Exception):
    """Process that should be running and is not; the message has the end of its log."""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running program. Its output goes to ``log``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Process:
        """Start ``command`` in ``folder``, by default this process's. It is killed should this process die."""
        inherited = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}  # only for this one
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**inherited, **(environment or {})},
                cwd=folder,
                preexec_fn=_die_with_parent,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self._process.returncode is None

    def alive(self) -> bool:
        """Check that it is running.

        Raises:
            ProcessError: it has ended.
        """
        if self._process.returncode is not None:
            raise ProcessError(f"{self.name} ended with code {self._process.returncode}:\n{self.tail()}")
        return True

    def tail(self, lines: int = 25) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def ended(self) -> int:
        """Wait until it ends by itself; its exit code."""
        return await self._process.wait()

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, the hard way if it takes more than a few seconds."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            try:
                async with asyncio.timeout(5):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        await self._process.wait()


class CommandError(Exception):
    """Command that failed and should not have; the message is its output."""


async def run_to_end(*command: str, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command in ``folder``, by default this process's, with ``environment`` in place of this process's.

    Return what it printed.

    Raises:
        CommandError: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment, cwd=folder
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)} ended with code {process.returncode}:\n{output.decode()}")
    return output.decode()


async def eventually(
    what: str,
    attempt: Callable[[], Awaitable[Result]],
    until: Callable[[Result], bool] = bool,
    within_s: float = 30.0,
    every_s: float = 0.02,
) -> Result:
    """Repeat ``attempt`` until its result satisfies ``until``. Errors of the network count as not yet.

    Raises:
        TimeoutError: it didn't within ``within_s`` seconds; the message says what was seen last.
    """
    deadline = time.monotonic() + within_s
    seen: object = "nothing"
    while time.monotonic() < deadline:
        try:
            result = await attempt()
            if until(result):
                return result
            seen = result
        except (OSError, EOFError) as error:
            seen = repr(error)
        await asyncio.sleep(every_s)
    raise TimeoutError(f"waited {within_s:.0f} s for {what}; seen last: {seen!r}")
