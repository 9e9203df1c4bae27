"""The state folder: kept, private, and never half written."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from xds.sources.file.state import StateError, StateFolder

DAMAGED = '{"trust_domain": "x", "certificate": 5, "private_key": 5, "rotated_out": []}'
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_generated_secrets_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    authority = StateFolder(folder).authority(NOW)
    assert StateFolder(folder).authority(NOW) == authority
    assert StateFolder(folder).rotate(NOW) == StateFolder(folder).authority(NOW)
    assert StateFolder(folder).authority(NOW).old[0].certificate == authority.certificate
    given = StateFolder(folder).give_virtual_ips(["web"], {})
    both = StateFolder(folder).give_virtual_ips(["api", "web"], {})
    assert both.by_service == {**given.by_service, "api": "240.0.0.2"}
    assert StateFolder(folder).give_virtual_ips(["api"], {}) == both
    (folder / "virtual-ips.json").unlink()
    with pytest.raises(StateError, match=r"virtual-ips\.json knows less than what is served"):
        StateFolder(folder).give_virtual_ips(["api"], {}, since=both)


def test_other_users_may_not_read_it(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.authority(NOW)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.authority_file.stat().st_mode & 0o777 == 0o600
    folder.authority_file.chmod(0o640)
    with pytest.raises(StateError, match=r"others may read it \(mode 0640\): run 'chmod 600"):
        folder.authority(NOW)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"trust_domain": 1}', DAMAGED, "\x00"])
def test_an_authority_that_is_damaged_is_never_replaced(tmp_path: Path, content: str) -> None:
    folder = StateFolder(tmp_path)
    folder.authority(NOW)
    folder.authority_file.write_text(content)
    with pytest.raises(StateError, match=r"ca\.json"):
        folder.authority(NOW)
    assert folder.authority_file.read_text() == content


def test_a_key_that_is_not_the_certificates_is_refused(tmp_path: Path) -> None:
    one, other = StateFolder(tmp_path / "one"), StateFolder(tmp_path / "other")
    one.authority(NOW)
    mixed = json.loads(one.authority_file.read_text())
    mixed["private_key"] = other.authority(NOW).private_key
    one.authority_file.write_text(json.dumps(mixed))
    with pytest.raises(StateError, match="the private key is not that of the certificate"):
        one.authority(NOW)


@pytest.mark.parametrize("content", ["[]", '{"web": "x"}', "{"])
def test_virtual_ips_that_are_damaged_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "virtual-ips.json").write_text(content)
    with pytest.raises(StateError, match=r"virtual-ips\.json"):
        StateFolder(tmp_path).give_virtual_ips(["web"], {})


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_an_authority_of_another_user_is_not_used(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.authority(NOW)
    os.chown(folder.authority_file, 54321, -1)
    with pytest.raises(StateError, match="may belong to another user: its owner is user 54321"):
        folder.authority(NOW)
    os.chown(folder.authority_file, os.geteuid(), -1)
    folder.path.chmod(0o777)
    with pytest.raises(StateError, match=r"the state folder .* may belong to another user: .* mode 0777"):
        folder.authority(NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.authority(NOW)
    os.chown(folder.path, 54321, -1)
    for use in (lambda: folder.authority(NOW), lambda: folder.rotate(NOW), folder.virtual_ips):
        with pytest.raises(StateError, match="may belong to another user: its owner is user 54321"):
            use()


@pytest.mark.parametrize("name", ["ca.json", "virtual-ips.json"])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.authority(NOW)
    folder.give_virtual_ips(["web"], {})
    elsewhere = tmp_path / name
    (folder.path / name).rename(elsewhere)
    (folder.path / name).symlink_to(elsewhere)
    with pytest.raises(StateError, match=f"{name}: it is a symbolic link"):
        folder.virtual_ips() if name.startswith("virtual") else folder.authority(NOW)


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    StateFolder(tmp_path / "state").authority(NOW)
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for use in (StateFolder(tmp_path / "link").authority, StateFolder(tmp_path / "link").rotate):
        with pytest.raises(StateError, match="link is a symbolic link: name what it leads to, with --state"):
            use(NOW)


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.json", 0o600)
    with pytest.raises(StateError, match=r"ca\.json is not a file"):
        StateFolder(tmp_path).authority(NOW)


def test_the_authority_in_use_is_not_replaced(tmp_path: Path) -> None:
    folder, other = StateFolder(tmp_path / "one"), StateFolder(tmp_path / "other")
    known = folder.authority(NOW)
    other.authority(NOW)
    folder.authority_file.write_text(other.authority_file.read_text())
    with pytest.raises(StateError, match="is another mesh's: put the one of"):
        folder.authority(NOW, known=known)
    folder.authority_file.unlink()
    with pytest.raises(StateError, match="is gone: put the one of"):
        folder.authority(NOW, known=known)
    assert not folder.authority_file.exists()


def test_a_lost_authority_is_not_replaced_at_the_next_start_either(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.authority(NOW)
    folder.give_virtual_ips(["web"], {})
    folder.authority_file.unlink()
    with pytest.raises(StateError, match=r"is gone, though virtual-ips\.json is there: put it back, or remove"):
        folder.authority(NOW)


def test_a_root_that_others_have_is_distrusted_at_once(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    tmp_path.chmod(0o700)
    before = folder.authority(NOW)
    after = folder.rotate(NOW, distrust_old=True)
    assert after.trusted(NOW).certificates == (after.certificate,)
    assert after.trust_domain == before.trust_domain


def test_a_rotation_needs_an_authority(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no certificate authority in"):
        StateFolder(tmp_path / "nothing").rotate(NOW)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"can't use the state folder .*file/state: Not a directory"):
        StateFolder(tmp_path / "file" / "state").authority(NOW)
