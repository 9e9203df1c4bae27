"""Tests that a mesh file's entries compile to the answers of a real Consul for the same entries."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from tests.unit.sources.chains import ENTRIES, NAMES, NEWER_ENTRIES, NEWER_NAMES, shape
from tests.unit.sources.file.meshes import document
from xds.lab.consul import LabConsul, version
from xds.lab.network import Network, temporary_folder
from xds.mesh.names import as_written
from xds.sources import decode
from xds.sources.file.chains import ChainEntries, compile_chain


@pytest.fixture(scope="module")
async def consul() -> AsyncIterator[LabConsul]:
    """Start a Consul with the entries."""
    folder = temporary_folder()
    try:
        with Network() as network:
            made = LabConsul(network.host("consul"), folder, acl=False)
            try:
                await made.start()
                for entry in (*ENTRIES, *(NEWER_ENTRIES if await version() >= (1, 16) else ())):
                    await made.entry(entry)
                yield made
            finally:
                await made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", [*NAMES, *NEWER_NAMES])
async def test_both_compile_the_same_chain(consul: LabConsul, name: str) -> None:
    newer = name in NEWER_NAMES
    if newer and await version() < (1, 16):
        pytest.skip("this Consul does not know all of these fields; a recorded answer is compared in the unit tests")
    entries = document(entries=[*ENTRIES, *NEWER_ENTRIES]).mesh.config_entries.bootstrap
    theirs = await consul.client.read(f"/v1/discovery-chain/{name}")
    ours = compile_chain(name, ChainEntries.of(entries, as_written), "dc1")
    old = await version() < (1, 10)
    assert shape(decode.chain(name, ours), by_1_8=old) == shape(decode.chain(name, theirs.data), by_1_8=old)
