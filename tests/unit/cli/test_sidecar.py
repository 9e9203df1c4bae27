"""Tests of the environment that Envoy is started with, and of the place of its admin interface."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import pytest

from xds.cli.common import Failure
from xds.cli.envoy_admin import AdminAddress, default_socket
from xds.cli.runtime import LONGEST_PATH
from xds.cli.sidecar import environment


def test_no_variable_that_may_hold_a_credential_is_passed_on() -> None:
    given = {
        "PATH": "/bin", "TZ": "UTC", "LC_ALL": "C", "HOME": "/", "CONSUL_HTTP_TOKEN": "t", "CONSUL_HTTP_AUTH": "u:p",
        "VAULT_TOKEN": "v", "AWS_SECRET_ACCESS_KEY": "a", "LD_PRELOAD": "x.so", "http_proxy": "http://u:p@h",
    }  # fmt: skip
    assert environment(given) == {"PATH": "/bin", "TZ": "UTC", "LC_ALL": "C", "HOME": "/"}


def test_the_socket_is_in_the_first_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    service, user = tmp_path / "service", tmp_path / "user"
    user.mkdir()
    both = {"RUNTIME_DIRECTORY": f"{service}:/other", "XDG_RUNTIME_DIR": str(user)}
    assert default_socket("web-sidecar-proxy", both) == service / "web-sidecar-proxy.sock"
    assert default_socket("web", {"XDG_RUNTIME_DIR": str(user)}).parent == user / "gossamer"
    without = default_socket("a/../b", {"XDG_RUNTIME_DIR": "/nowhere"})
    assert without.parent.parent == tmp_path
    assert without.name == "a%2F..%2Fb.sock"
    assert without.parent.stat().st_mode & 0o777 == 0o700


def test_a_long_name_has_a_path_that_fits() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = [default_socket(f"{'x' * 200}{number}", {"RUNTIME_DIRECTORY": f"{folder}/r"}) for number in (1, 2)]
    assert made[0] != made[1]
    assert all(len(str(each)) <= LONGEST_PATH for each in made)


def test_a_folder_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is longer than 107 bytes; give another place"):
        default_socket("web", {"RUNTIME_DIRECTORY": str(tmp_path / ("x" * 100))})


def test_a_folder_that_others_write_to_or_a_link_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").write_text("")
    for folder in ("shared", "link", "file", "none/below"):
        with pytest.raises(Failure, match="--admin unix:PATH"):
            default_socket("web", {"RUNTIME_DIRECTORY": str(tmp_path / folder)})


def test_an_address_or_a_socket_is_accepted() -> None:
    take = AdminAddress().convert
    assert take("unix:/run/x.sock", None, None) == Path("/run/x.sock")
    assert take("127.0.0.1:19000", None, None) == ("127.0.0.1", 19000)
    for wrong in ("unix:relative", f"unix:/{'x' * 200}", "nothing"):
        with pytest.raises(click.UsageError):
            take(wrong, None, None)
