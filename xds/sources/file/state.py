"""The state folder of a mesh without a Consul: its certificate authority and the virtual IPs that were given.

Both have to outlive the process: a new authority would end every connection, a new virtual IP would move a service
under its callers. Files are replaced as a whole, by one writer at a time, and readable by their owner alone.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xds.sources.file.authority import Authority, OldRoot, new_authority, rotated
from xds.sources.file.virtual_ips import ExhaustedError, Given

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


class StateError(Exception):
    """The state folder can't be used; the message says which file, why, and what to do."""


class StateFolder:
    """The folder ``path``, which is made when something has to be kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority_file = path / "ca.json"
        self._virtual_ips_file = path / "virtual-ips.json"

    def authority(self, now: datetime, *, new: bool = True) -> Authority:
        """The certificate authority; a new one where there is none yet, unless ``new`` is false.

        Raises:
            StateError: its file can't be read or written, is not private, or holds something else.
        """
        with self._locked():
            found = self._read_authority()
            if found is None and not new:
                raise StateError(f"{self.authority_file} is gone: put it back; the certificates of the mesh hang on it")
            if found is None:
                found = new_authority(now)
                self._write(self.authority_file, _authority_as_json(found))
            return found

    def rotate(self, now: datetime) -> Authority:
        """Replace the active root by a new one.

        Raises:
            StateError: there is no authority yet, or as for `authority`.
        """
        if not self.authority_file.exists():
            raise StateError(f"no certificate authority in {self.path}: gossamer serve --mesh makes one when it starts")
        with self._locked():
            found = self._read_authority()
            assert found is not None
            found = rotated(found, now)
            self._write(self.authority_file, _authority_as_json(found))
            return found

    def virtual_ips(self) -> Given:
        """The virtual IPs that were given.

        Raises:
            StateError: their file can't be read, or holds something else.
        """
        data = self._read(self._virtual_ips_file)
        if data is None:
            return Given()
        try:
            by_service = {str(name): str(ipaddress.IPv4Address(each)) for name, each in data["by_service"].items()}
            return Given(by_service, ipaddress.IPv4Address(data["last"]))
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise StateError(f"{self._virtual_ips_file} is not what gossamer wrote: {error}; restore it") from None

    def give_virtual_ips(self, services: Sequence[str], taken: Collection[str]) -> Mapping[str, str]:
        """Give a virtual IP to each of ``services`` that has none; all that were given, by service.

        ``taken`` are addresses that services claim themselves.

        Raises:
            StateError: as for `virtual_ips`, or they can't be written, or there are no more.
        """
        try:
            if (before := self.virtual_ips()).to(services, taken) == before:
                return before.by_service
            with self._locked():
                after = self.virtual_ips().to(services, taken)
                self._write(self._virtual_ips_file, {"by_service": dict(after.by_service), "last": str(after.last)})
                return after.by_service
        except ExhaustedError as error:
            raise StateError(str(error)) from None

    # -- files ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process changes the folder at a time."""
        with self._explained("use"):
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"can't {what} the state folder {self.path}: {error.strerror}; name a writable one with --state"
            ) from None

    def _read(self, file: Path) -> Any:
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"can't read {file}: {error}") from None

    def _read_authority(self) -> Authority | None:
        try:
            mode = stat.S_IMODE(self.authority_file.stat().st_mode)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"can't read {self.authority_file}: {error.strerror}") from None
        if mode & 0o077:
            raise StateError(
                f"{self.authority_file} holds the mesh's private key and others may read it (mode {mode:04o}): run"
                f" 'chmod 600 {self.authority_file}', and 'gossamer ca rotate' if others had access"
            )
        data = self._read(self.authority_file)
        try:
            return _authority_from_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{self.authority_file} is not what gossamer wrote: {error}; restore it") from None

    def _write(self, file: Path, data: Any) -> None:
        with self._explained("write to"):
            self._replace(file, json.dumps(data, indent=2).encode() + b"\n")

    def _replace(self, file: Path, content: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=f".{file.name}.", delete=False) as out:
            try:
                os.fchmod(out.fileno(), PRIVATE_FILE)
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
                Path(out.name).replace(file)
            except BaseException:
                Path(out.name).unlink(missing_ok=True)
                raise


def _authority_as_json(authority: Authority) -> dict[str, Any]:
    return {
        "trust_domain": authority.trust_domain,
        "certificate": authority.certificate,
        "private_key": authority.private_key,
        "rotated_out": [
            {
                "certificate": root.certificate,
                "cross_signed": root.cross_signed,
                "at": root.rotated_out_at.isoformat(timespec="seconds"),
            }
            for root in authority.old
        ],
    }


def _authority_from_json(data: Any) -> Authority:
    authority = Authority(
        trust_domain=data["trust_domain"],
        certificate=data["certificate"],
        private_key=data["private_key"],
        old=tuple(
            OldRoot(root["certificate"], root["cross_signed"], datetime.fromisoformat(root["at"]).astimezone(UTC))
            for root in data["rotated_out"]
        ),
    )
    authority.check()
    return authority
