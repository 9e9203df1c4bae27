"""Settings of the connection to Consul: flags first, then Consul's own environment variables, then its defaults."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from xds.tls_client import client_context

DEFAULT_ADDRESS = "http://127.0.0.1:8500"
AGENT_ROOTS_PATH = "/v1/agent/connect/ca/roots"
"""Path of the mesh's certificate authorities in the agent's cache; it needs no request to Consul's servers, and no
token."""


class SettingsError(Exception):
    """Setting that can't be used; the message names the flag or variable, its value and what was expected."""


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """Settings of the connection to Consul. Empty strings mean "not given"."""

    address: str = DEFAULT_ADDRESS
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    verify: bool = True
    datacenter: str = ""

    @classmethod
    def resolve(cls, flags: Mapping[str, str | None], environment: Mapping[str, str]) -> ConsulSettings:
        """Return settings from ``flags`` (by field name) and, where a flag is not given, from Consul's environment
        variables.

        Raises:
            SettingsError: the address is not one, a file is not there, or two settings contradict each other.
        """

        def pick(field: str, variable: str) -> str:
            return flags.get(field) or environment.get(variable, "")

        settings = cls(
            address=_address(pick("address", "CONSUL_HTTP_ADDR"), environment.get("CONSUL_HTTP_SSL", "")),
            token=pick("token", "CONSUL_HTTP_TOKEN"),
            token_file=pick("token_file", "CONSUL_HTTP_TOKEN_FILE"),
            ca_file=pick("ca_file", "CONSUL_CACERT"),
            ca_path=pick("ca_path", "CONSUL_CAPATH"),
            client_cert=pick("client_cert", "CONSUL_CLIENT_CERT"),
            client_key=pick("client_key", "CONSUL_CLIENT_KEY"),
            tls_server_name=pick("tls_server_name", "CONSUL_TLS_SERVER_NAME"),
            verify=environment.get("CONSUL_HTTP_SSL_VERIFY", "true").lower() not in ("false", "0"),
            datacenter=flags.get("datacenter") or "",
        )
        if bool(settings.client_cert) != bool(settings.client_key):
            raise SettingsError("a client certificate needs its key, and a key its certificate: give both or none")
        for what, path in (
            ("the token file", settings.token_file),
            ("the CA file", settings.ca_file),
            ("the CA folder", settings.ca_path),
            ("the client certificate", settings.client_cert),
            ("the client key", settings.client_key),
        ):
            if path and not Path(path).exists():
                raise SettingsError(f"{what} {path!r} does not exist")
        return settings

    @property
    def shown_address(self) -> str:
        """The address without the credentials that it may hold: for logs, errors and ``/ready``."""
        return without_credentials(self.address)

    def ssl_context(self) -> ssl.SSLContext | bool:
        """Return the value of aiohttp's parameter ``ssl``.

        Raises:
            SettingsError: a certificate or key can't be loaded.
        """
        if not self.address.startswith("https"):
            return True
        try:
            context = client_context(self.ca_file or None, self.ca_path or None)
            if self.client_cert:
                context.load_cert_chain(self.client_cert, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"can't use the TLS files for {self.shown_address}: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def read_token(self) -> str:
        """Return the token: from the file, which may change at any time, otherwise the one that was given.

        Raises:
            SettingsError: the token file can't be read.
        """
        if not self.token_file:
            return self.token
        try:
            token = Path(self.token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"can't read the token file {self.token_file!r}: {error}") from error
        if not token.isprintable():
            raise SettingsError(f"the token file {self.token_file!r} holds more than one line: expected a token alone")
        return token


def without_credentials(address: str) -> str:
    """Return a URL without user, password, query and fragment; whatever else is not a URL is returned without these."""
    scheme, separator, rest = address.rpartition("://")
    at, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{separator}{at.rpartition('@')[2]}{slash}{path}"


def _address(given: str, ssl_variable: str) -> str:
    if not given:
        return DEFAULT_ADDRESS
    if given.startswith("unix://"):
        return given
    address = given if "://" in given else f"http://{given}"
    if ssl_variable.lower() in ("true", "1") and address.startswith("http://"):
        address = "https://" + address.removeprefix("http://")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(
            f"Consul's address {without_credentials(given)!r} is not one: expected http://HOST:PORT, https://HOST:PORT,"
            " HOST:PORT or unix:///PATH (--consul, CONSUL_HTTP_ADDR)"
        )
    return address.rstrip("/")
