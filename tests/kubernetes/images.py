"""Builds the images that the node runs: ``python -m tests.kubernetes.images FILE`` writes them into FILE.

The application's image is Gossamer's as well: it has the lab's application.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from tests.integration.engine import BASE, Engine
from tests.integration.test_compose import PYTHON_IMAGE, check_out
from xds.lab.network import temporary_folder

GOSSAMER, PAUSE = "localhost/gossamer:test", "localhost/pause:test"


async def build(folder: Path, file: Path) -> None:
    """Build both images in ``folder``, and save them in ``file``."""
    check_out(folder / "gossamer")
    pause = folder / "pause"
    pause.mkdir()
    (pause / "Dockerfile").write_text(f'FROM {PYTHON_IMAGE}\nENTRYPOINT ["sleep", "infinity"]\n')
    async with Engine(folder, isolated=False) as engine:
        await engine.run("docker", "import", str(BASE), PYTHON_IMAGE)
        made = ("docker", "build", "--quiet", "--network", "host", "--build-arg", f"PYTHON_IMAGE={PYTHON_IMAGE}")
        await engine.run(*made, "--tag", GOSSAMER, str(folder / "gossamer"))
        await engine.run("docker", "build", "--quiet", "--tag", PAUSE, str(pause))
        await engine.run("docker", "save", "--output", str(file), GOSSAMER, PAUSE)


def main() -> None:
    """Build."""
    folder = temporary_folder()
    try:
        asyncio.run(build(folder, Path(sys.argv[1])))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
