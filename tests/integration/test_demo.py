"""The demo as it is typed: it shows what it says, and leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from xds.lab.commands import gossamer
from xds.lab.processes import eventually

NOBODY = 65534


@asynccontextmanager
async def demo(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = gossamer("demo", *arguments)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_said(process: asyncio.subprocess.Process, words: str) -> str:
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(100):
        while words not in said:
            line = await process.stdout.readline()
            assert line, f"it ended before it said {words!r}:\n{said}"
            said += line.decode()
    return said


def left_behind(process: asyncio.subprocess.Process) -> list[str]:
    """Return what exists of the demo: processes in its namespaces, and their names and files."""
    mine = f"gossamer-{process.pid}-"
    found = [path.name for folder in ("/run/netns", "/tmp", "/run") for path in Path(folder).glob(f"*{mine}*")]
    if Path("/run/gossamer").exists():
        found.append("/run/gossamer")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"GOSSAMER_DEMO_INSIDE={process.pid}".encode() in environment and command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


async def gone(process: asyncio.subprocess.Process) -> None:
    async def nothing_left() -> list[str]:
        return await asyncio.to_thread(left_behind, process)

    await eventually("nothing to be left behind", nothing_left, until=lambda left: left == [])


@pytest.mark.timeout(200)
async def test_the_demo_passes() -> None:
    async with demo() as process:
        output, _ = await process.communicate()
        said = output.decode()
        assert process.returncode == 0, said
        steps = re.findall(r"^\d+\. ", said, re.MULTILINE)
        assert f"{len(steps)} of {len(steps)} as expected" in said
        assert said.count("expected: ") == said.count("seen:     ") == len(steps) == 10
        await gone(process)


@pytest.mark.timeout(200)
async def test_the_demo_with_hold_can_be_used_and_ctrl_c_ends_it() -> None:
    async with demo("--hold") as process:
        said = await until_said(process, "everybody's logs:")
        tried = re.search(r"web-1's host \(allowed\):\s+(.*)", said)
        seen = re.search(r"who was sent what:\s+(.*)", said)
        mesh = re.search(r"the mesh, to edit:\s+(.*)", said)
        assert tried
        assert seen
        assert mesh
        assert json.loads(await _shell(tried[1]))["service"].startswith("api-")
        assert "web-1-sidecar-proxy" in await _shell(seen[1])
        _edit(Path(mesh[1]), "Action: allow", "Action: deny")
        await eventually("the edit to be followed", lambda: _shell(tried[1]), until=lambda answer: answer == "")
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode == 0
        await gone(process)


def _edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


async def _shell(command: str) -> str:
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.timeout(200)
async def test_nothing_is_left_after_an_interrupted_demo(how: signal.Signals) -> None:
    async with demo() as process:
        await until_said(process, "1. web dials api")
        assert left_behind(process)
        process.send_signal(how)
        await process.wait()
        assert process.returncode == (1 if how is signal.SIGTERM else -how)
        await gone(process)


async def test_without_root_the_missing_right_is_reported() -> None:
    """As a user to whom nobody gave further IDs."""
    capability = "+dac_read_search"  # to come to the interpreter, which may be where only root can
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    caps = [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    process = await asyncio.create_subprocess_exec(
        "setpriv", *user, *caps, *gossamer("demo"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "USER": "nobody"},
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"Error: without root (user nobody) the demo runs in a user namespace, and" in output
    wanted = b"usermod --add-subuids" if shutil.which("newuidmap") else b"newuidmap is not installed"
    assert wanted in output
    assert output.count(b"\n") == 1
