"""Tests of the TLS of the xDS port: files that can't be used, files that change, identities of clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.certificates import TestAuthority
from tests.unit.ads.test_server import first_request, read
from tests.unit.control.bench import Bench
from tests.unit.facts import FREE_PORT
from xds.ads.listening import ListenError
from xds.ads.server import SERVICE, AdsServer
from xds.ads.tls import FileCertificate, TlsError, TlsFiles
from xds.control.ads_adapter import AdsAdapter
from xds.workers.serving import Serving
from xds.workers.xds_settings import XdsSettings


@asynccontextmanager
async def serving(files: TlsFiles) -> AsyncIterator[tuple[Bench, int]]:
    bench = Bench()
    bench.service("web", "240.0.0.1")
    bench.leaf("web")
    server = AdsServer(AdsAdapter(bench.plane))
    port = await server.start(FREE_PORT, certificate=FileCertificate(files))
    try:
        yield bench, port
    finally:
        await server.stop()


@asynccontextmanager
async def stream(port: int, ca: Path, client: tuple[Path, Path] | None = None) -> AsyncIterator[Any]:
    credentials = await asyncio.to_thread(_credentials, ca, client)
    options = [("grpc.ssl_target_name_override", "gossamer"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        made = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")()
        await made.write(first_request())
        yield made
        made.cancel()


def _credentials(ca: Path, client: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
    certificate, key = (each.read_bytes() for each in client) if client else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)


async def code(made: Any) -> grpc.StatusCode:
    async with asyncio.timeout(20):
        found: grpc.StatusCode = await made.code()
        return found


async def test_new_files_are_followed_and_end_no_stream(tmp_path: Path) -> None:
    old, new = TestAuthority(tmp_path, "old"), TestAuthority(tmp_path, "new")
    files = TlsFiles(*old.issue("server", "gossamer"))
    async with serving(files) as (bench, port), stream(port, old.file) as before:
        await read(before)
        new.issue("server", "gossamer")
        async with stream(port, new.file) as after:
            await read(after)
        files.certificate.write_text("half a certi")
        async with stream(port, new.file) as after:
            await read(after)
        assert len(bench.plane.proxies()) >= 1
        assert not before.done()


async def test_a_client_certificate_is_required_and_identifies_the_client(tmp_path: Path) -> None:
    ours, theirs = TestAuthority(tmp_path, "ours"), TestAuthority(tmp_path, "theirs")
    web = "spiffe://td.consul/ns/default/dc/dc1/svc/web"
    files = TlsFiles(*ours.issue("server", "gossamer"), ours.file)
    async with serving(files) as (bench, port):
        bench.authorizes = False
        async with stream(port, ours.file, ours.issue("web", web)):
            async with asyncio.timeout(20):
                while not (proxies := bench.plane.proxies()):  # noqa: ASYNC110 - the plane has no event for it
                    await asyncio.sleep(0.001)
            assert proxies[0].certified
        for client in (None, theirs.issue("other", web)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with stream(port, ours.file, client):
                    pass
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_plain_text_is_not_served_at_a_tls_port(tmp_path: Path) -> None:
    files = TlsFiles(*TestAuthority(tmp_path).issue("server", "gossamer"))
    async with serving(files) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")()
        assert await code(made) == grpc.StatusCode.UNAVAILABLE


def _other_key(authority: TestAuthority) -> TlsFiles:
    return TlsFiles(authority.issue("one", "a")[0], authority.issue("two", "a")[1])


def _expired(authority: TestAuthority) -> TlsFiles:
    return TlsFiles(*authority.issue("old", "a", life=timedelta(hours=-1)))


def _no_ca(authority: TestAuthority) -> TlsFiles:
    empty = authority.folder / "empty"
    empty.touch()
    return TlsFiles(*authority.issue("one", "a"), empty)


def _swapped(authority: TestAuthority) -> TlsFiles:
    certificate, key = authority.issue("one", "a")
    return TlsFiles(certificate, certificate) if certificate != key else TlsFiles(key, key)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda authority: TlsFiles(authority.file, authority.folder / "none.key"), "can't read .*none.key: No such"),
        (lambda authority: TlsFiles(authority.issue("one", "a")[1], authority.issue("two", "a")[1]), "no certificate"),
        (_other_key, "is not that of the certificate"),
        (_expired, "expired at .* UTC: replace it"),
        (_no_ca, "empty has no certificate"),
        (_swapped, "has no private key in PEM"),
    ],
)
async def test_files_that_can_not_be_used_are_an_error_at_the_start(
    tmp_path: Path, make: Callable[[TestAuthority], TlsFiles], words: str
) -> None:
    files = make(TestAuthority(tmp_path))
    with pytest.raises(TlsError, match=words):
        FileCertificate(files)
    with pytest.raises(ListenError, match=f"can't serve TLS on 127.0.0.1:0: .*{words}"):
        await Serving(XdsSettings(listen=FREE_PORT, tls=files), lambda _: None).start()


def test_a_link_that_is_moved_is_another_certificate(tmp_path: Path) -> None:
    """As Kubernetes replaces what it mounts: the files are links through one link, which is replaced."""
    authority = TestAuthority(tmp_path)
    for number in ("1", "2"):
        folder = tmp_path / number
        folder.mkdir()
        for made, name in zip(authority.issue("server", "gossamer"), ("tls.crt", "tls.key"), strict=True):
            made.rename(folder / name)
    (tmp_path / "data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"data/{name}")
    certificate = FileCertificate(TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key"))
    certificate.credentials()
    assert certificate._changed() is None
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "data")
    assert certificate._changed() is not None
    assert certificate._changed() is None
