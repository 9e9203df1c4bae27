"""Tests of the settings of the connection to Consul, from flags and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from xds.sources.consul.settings import ConsulSettings, SettingsError


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [
        (None, {}, "http://127.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "http://10.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": "10.0.0.1:8501", "CONSUL_HTTP_SSL": "true"}, "https://10.0.0.1:8501"),
        ("https://consul:8501/", {"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "https://consul:8501"),
        ("unix:///run/consul.sock", {}, "unix:///run/consul.sock"),
        ("http://[::1]:8500", {}, "http://[::1]:8500"),
    ],
)
def test_the_address(flag: str | None, environment: dict[str, str], expected: str) -> None:
    assert ConsulSettings.resolve({"address": flag}, environment).address == expected


@pytest.mark.parametrize("address", ["ftp://consul", "http://", "http://host:port", "http://host:99999"])
def test_an_invalid_address_is_named(address: str) -> None:
    with pytest.raises(SettingsError, match=r"CONSUL_HTTP_ADDR"):
        ConsulSettings.resolve({}, {"CONSUL_HTTP_ADDR": address})


@pytest.mark.parametrize(
    "address",
    ["http://u:s3cret@consul:8500", "https://u:p@s3cret@consul:8500/at?token=s3cret#s3cret", "u:s3cret@consul:8500"],
)
def test_credentials_in_the_address_are_not_shown(address: str) -> None:
    shown = ConsulSettings.resolve({"address": address}, {}).shown_address
    assert "s3cret" not in shown
    assert "://consul:8500" in shown


def test_credentials_in_an_invalid_address_are_not_shown() -> None:
    with pytest.raises(SettingsError) as told:
        ConsulSettings.resolve({"address": "ftp://u:s3cret@consul"}, {})
    assert "s3cret" not in str(told.value)


def test_files_must_exist_and_a_certificate_needs_its_key() -> None:
    with pytest.raises(SettingsError, match=r"the CA file '/nowhere.pem' does not exist"):
        ConsulSettings.resolve({"ca_file": "/nowhere.pem"}, {})
    with pytest.raises(SettingsError, match="needs its key"):
        ConsulSettings.resolve({}, {"CONSUL_CLIENT_CERT": "/dev/null"})


def test_a_token_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    settings = ConsulSettings.resolve({"token_file": str(file)}, {"CONSUL_HTTP_TOKEN": "ignored"})
    assert settings.read_token() == "one"
    file.write_text("two")
    assert settings.read_token() == "two"


def test_an_invalid_ca_file_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nonsense")
    settings = ConsulSettings.resolve({"address": "https://consul:8501", "ca_file": str(file)}, {})
    with pytest.raises(SettingsError, match="can't use the TLS files"):
        settings.ssl_context()


@pytest.mark.parametrize("content", [b"one\ntwo\n", b"\xff\xfe"])
def test_a_token_file_that_holds_no_token_is_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="token file"):
        ConsulSettings.resolve({"token_file": str(file)}, {}).read_token()
