"""A mesh from a file: what it hands over, and what an edit does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.sources.file.meshes import intentions, mesh, service
from xds.lab.processes import eventually
from xds.mesh.facts import CONTROL_PLANE_LEAF, Leaf, LeafKey, LeafRefused
from xds.mesh.mesh import Batch, Demand, Mesh
from xds.sources.authority import OLD_ROOT_TRUSTED
from xds.sources.file import source as source_module
from xds.sources.file.document import RefusedError
from xds.sources.file.registration import NoRootsError, read_roots
from xds.sources.file.settings import FileSettings, roots_file
from xds.sources.file.source import FileSource
from xds.sources.file.state import StateFolder

WEB, API = LeafKey("web", ""), LeafKey("api", "")


class Bench:
    """A file source, its mesh, and a clock that is set by hand."""

    def __init__(self, folder: Path, text: str, *, tokens_needed: bool = False) -> None:
        self.file = folder / "mesh.yaml"
        self.file.write_text(text)
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.mesh = Mesh()
        self.batches = 0
        self._changed = asyncio.Event()
        self.settings = FileSettings.resolve(self.file, None)
        self.source = FileSource(self.settings, self._take, tokens_needed=tokens_needed, clock=lambda: self.now)

    def _take(self, batch: Batch) -> None:
        self.batches += 1
        if self.mesh.apply(batch):
            self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_troubled(self, troubled: bool) -> None:
        async def seen() -> bool:
            return bool(self.source.troubles()) == troubled

        await eventually("the source's troubles to change", seen)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.source.run())
        try:
            await self.until(lambda: not self.mesh.missing())
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def leaf(self, key: LeafKey) -> Leaf:
        found = self.mesh.leaf(key)
        assert isinstance(found, Leaf)
        return found


async def test_only_demanded_facts_are_delivered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web"), service("api")))
    async with bench.running():
        assert bench.mesh.instances("api") is None
        bench.source.demand(Demand(frozenset({"api", "absent"}), frozenset({WEB})))
        await bench.until(lambda: bench.mesh.leaf(WEB) is not None)
        api, chain, absent = bench.mesh.instances("api"), bench.mesh.chain("api"), bench.mesh.instances("absent")
        assert api is not None
        assert [instance.service_id for instance in api.instances] == ["api-1-sidecar-proxy"]
        assert chain is not None
        assert chain.virtual_ips == ("240.0.0.2",)
        assert absent is not None
        assert absent.instances == ()
        bench.source.demand(Demand())
        await bench.until(lambda: bench.mesh.leaf(WEB) is None)
        assert bench.mesh.instances("api") is None


async def test_an_edit_is_followed_and_a_bad_one_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.file.write_text(mesh(service("web"), service("api"), entries=[intentions("api", web="allow")]))
        await bench.until(lambda: bench.mesh.service_names == frozenset({"web", "api"}))
        assert bench.mesh.intentions

        bench.file.write_text("services: [")
        await bench.until_troubled(True)
        assert "mesh.yaml:2: not YAML" in bench.source.troubles()["mesh file"]
        assert bench.mesh.service_names == frozenset({"web", "api"})

        bench.file.unlink()
        (tmp_path / "new").write_text(mesh(service("api")))
        (tmp_path / "new").rename(bench.file)  # as editors and deployment tools do
        await bench.until(lambda: bench.mesh.service_names == frozenset({"api"}))
        await bench.until_troubled(False)


async def test_a_file_that_disappears_is_reported_and_does_not_empty_the_mesh(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.file.unlink()
        await bench.until_troubled(True)
        assert "can't be read: No such file" in bench.source.troubles()["mesh file"]
        assert bench.mesh.service_names == frozenset({"web"})


async def test_an_authority_that_disappears_is_not_replaced(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        roots = bench.mesh.roots
        kept = (bench.settings.state / "ca.json").rename(tmp_path / "kept.json")
        await bench.until_troubled(True)
        assert "ca.json is gone: put the one of" in bench.source.troubles()["mesh file"]
        kept.rename(bench.settings.state / "ca.json")
        await bench.until_troubled(False)
        assert bench.mesh.roots == roots


async def test_another_datacenter_is_another_identity(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.source.demand(Demand(frozenset(), frozenset({WEB})))
        await bench.until(lambda: bench.mesh.leaf(WEB) is not None)
        first = bench.leaf(WEB)
        bench.file.write_text("datacenter: dc2\n" + mesh(service("web")))
        await bench.until(lambda: bench.mesh.datacenter == "dc2")
        assert bench.leaf(WEB) != first


BAD_EDITS = [
    "datacenter: !!int ''\n",
    "datacenter: !!bool maybe\n",
    "datacenter: !!timestamp never\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "x: " + "[" * 100_000,
    "a: &a [*a]\n",
    "config_entries: {bootstrap: [{Kind: service-defaults, Name: a, Expose: {Paths: [1]}}]}\n",
    "config_entries: {bootstrap: [{Kind: service-defaults, Name: a, Expose: {Paths: 7}}]}\n",
]


@pytest.mark.parametrize("edit", BAD_EDITS, ids=range(len(BAD_EDITS)))
async def test_no_edit_ends_what_is_served(tmp_path: Path, edit: str) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.file.write_text(mesh(service("web")) + edit)
        await bench.until_troubled(True)
        assert "mesh.yaml" in bench.source.troubles()["mesh file"]
        bench.file.write_text(mesh(service("api")))
        await bench.until(lambda: bench.mesh.service_names == frozenset({"api"}))


async def test_a_repair_that_touches_no_file_is_noticed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        authority = bench.settings.state / "ca.json"
        authority.chmod(0o644)
        bench.file.write_text(mesh(service("web"), service("api")))
        await bench.until_troubled(True)
        authority.chmod(0o600)
        await bench.until(lambda: bench.mesh.service_names == frozenset({"web", "api"}))


async def test_an_assigned_virtual_ip_is_not_reassigned(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web"), service("api")))
    async with bench.running():
        claiming = {"port": 20000, "tagged_addresses": {"virtual": {"address": "240.0.0.2"}}}
        bench.file.write_text(mesh(service("web", connect={"sidecar_service": claiming}), service("api")))
        await bench.until_troubled(True)
        said = bench.source.troubles()["mesh file"]
        assert "'web' claims the virtual IP 240.0.0.2, which was given to 'api'" in said


async def test_an_expired_root_issues_nothing_and_ends_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.now += timedelta(days=4000)
        bench.source.demand(Demand(frozenset(), frozenset({WEB})))
        await bench.until(lambda: isinstance(bench.mesh.leaf(WEB), LeafRefused))


async def test_edits_are_followed_without_notifications_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_folders: Path, **_options: object) -> AsyncIterator[None]:
        raise RuntimeError("inotify watch limit reached")
        yield

    monkeypatch.setattr(source_module, "awatch", refused)
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.file.write_text(mesh(service("web"), service("api")))
        await bench.until(lambda: bench.mesh.service_names == frozenset({"web", "api"}))


async def test_a_service_that_leaves_the_file_has_no_instances(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web"), service("api")))
    async with bench.running():
        bench.source.demand(Demand(frozenset({"api"}), frozenset({API})))
        await bench.until(lambda: bench.mesh.leaf(API) is not None)
        bench.file.write_text(mesh(service("web")))
        await bench.until(lambda: isinstance(bench.mesh.leaf(API), LeafRefused))
        api = bench.mesh.instances("api")
        assert api is not None
        assert api.instances == ()


async def test_a_certificate_needs_the_token_that_the_file_names(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web", token="w"), service("api", token="a")), tokens_needed=True)
    keys = [LeafKey("web", token) for token in ("w", "", "a", "ẃ")]
    async with bench.running():
        bench.source.demand(Demand(frozenset(), frozenset([*keys, LeafKey("nobody", "w")])))
        await bench.until(lambda: bench.mesh.leaf(keys[0]) is not None)
        assert bench.leaf(keys[0]).service == "web"
        for key in (*keys[1:], LeafKey("nobody", "w")):
            assert isinstance(bench.mesh.leaf(key), LeafRefused)
        # A token that is replaced opens nothing any more, the new one does.
        bench.file.write_text(mesh(service("web", token="a"), service("api", token="w")))
        await bench.until(lambda: isinstance(bench.mesh.leaf(keys[2]), Leaf))
        assert isinstance(bench.mesh.leaf(keys[0]), LeafRefused)


async def test_the_control_plane_needs_no_token_and_its_roots_are_published(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web", token="w")), tokens_needed=True)
    file = roots_file(bench.file)

    async def published() -> str:
        return file.read_text() if file.exists() else ""

    async with bench.running():
        assert not file.exists()
        bench.source.demand(Demand(leaves=frozenset({CONTROL_PLANE_LEAF})))
        await bench.until(lambda: isinstance(bench.mesh.leaf(CONTROL_PLANE_LEAF), Leaf))
        first = await eventually("the roots", published)
        assert read_roots(file).trust_domain == bench.source._mesh.authority.trust_domain
        folder = StateFolder(bench.settings.state)
        await asyncio.to_thread(folder.rotate, bench.now)
        both = await eventually("the next roots", published, until=lambda found: found != first)
        assert both.endswith(first)
        assert len(both) > len(first)
        assert "PRIVATE KEY" not in both
        assert file.stat().st_mode & 0o777 == 0o644


async def test_roots_that_can_not_be_published_are_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    roots_file(bench.file).mkdir()
    (roots_file(bench.file) / "in the way").write_text("")
    async with bench.running():
        bench.source.demand(Demand(leaves=frozenset({CONTROL_PLANE_LEAF})))
        await bench.until_troubled(True)
        assert "can't write" in bench.source.troubles()["roots file"]
        (roots_file(bench.file) / "in the way").unlink()
        roots_file(bench.file).rmdir()
        bench.file.write_text(mesh(service("web"), service("api")))
        await bench.until_troubled(False)
    assert sorted(each.name for each in os.scandir(tmp_path)) == ["mesh.yaml", "mesh.yaml.roots.pem", "mesh.yaml.state"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file.*'gossamer serve' writes it"),
        ("", "is not what gossamer serve wrote"),
        ("é", "is not what"),
    ],
)
def test_roots_that_can_not_be_read_are_an_error(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "mesh.yaml.roots.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(NoRootsError, match=words):
        read_roots(file)


async def test_without_tokens_only_loopback_is_served(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"mesh\.yaml:2: no service has a token, so any client"):
        Bench(tmp_path, mesh(service("web")), tokens_needed=True)
    bench = Bench(tmp_path, mesh(service("web", token="w")), tokens_needed=True)
    async with bench.running():
        bench.file.write_text(mesh(service("web")))
        await bench.until_troubled(True)


async def test_leaves_are_renewed_in_time_and_only_then(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.source.demand(Demand(frozenset(), frozenset({WEB})))
        await bench.until(lambda: bench.mesh.leaf(WEB) is not None)
        first = bench.leaf(WEB)
        bench.now += timedelta(hours=72 * 0.59)
        bench.source.renew()
        assert bench.leaf(WEB) == first
        bench.now += timedelta(hours=72 * 0.32)
        bench.source.renew()
        assert bench.leaf(WEB) != first


async def test_an_unrelated_edit_renews_no_certificate(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.source.demand(Demand(frozenset(), frozenset({WEB})))
        await bench.until(lambda: bench.mesh.leaf(WEB) is not None)
        first = bench.leaf(WEB)
        bench.file.write_text(mesh(service("web"), service("api")))
        await bench.until(lambda: bench.mesh.service_names == frozenset({"web", "api"}))
        assert bench.leaf(WEB) == first


async def test_a_rotation_by_another_process_is_followed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    async with bench.running():
        bench.source.demand(Demand(frozenset(), frozenset({WEB})))
        await bench.until(lambda: bench.mesh.leaf(WEB) is not None)
        first, roots = bench.leaf(WEB), bench.mesh.roots
        assert roots is not None
        StateFolder(bench.settings.state).rotate(bench.now)
        await bench.until(lambda: bench.mesh.leaf(WEB) != first)
        both = bench.mesh.roots
        assert both is not None
        assert both.certificates[1:] == roots.certificates
        bench.now += OLD_ROOT_TRUSTED
        bench.source.renew()
        alone = bench.mesh.roots
        assert alone is not None
        assert alone.certificates == both.certificates[:1]


async def test_a_root_that_is_about_to_expire_is_a_trouble(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mesh(service("web")))
    assert bench.source.troubles() == {}
    bench.now += timedelta(days=3600)
    assert "run gossamer ca rotate" in bench.source.troubles()["certificate authority"]


async def test_a_restart_changes_no_virtual_ip_and_no_root(tmp_path: Path) -> None:
    text = mesh(service("web"), service("api"))
    seen = []
    for order in (text, mesh(service("api"), service("web"))):
        bench = Bench(tmp_path, order)
        async with bench.running():
            bench.source.demand(Demand(frozenset({"web", "api"})))
            await bench.until(lambda bench=bench: bench.mesh.chain("web") is not None)  # type: ignore[misc]
            seen.append([bench.mesh.chain("web"), bench.mesh.chain("api"), bench.mesh.roots])
    assert seen[0] == seen[1]
