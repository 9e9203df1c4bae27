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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xds.sources.file.authority import Authority, OldRoot, new_authority, rotated
from xds.sources.file.virtual_ips import ExhaustedError, Given

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
NOTHING_GIVEN = Given()


class StateError(Exception):
    """The state folder can't be used; the message says which file, why, and what to do."""


class StateFolder:
    """The folder ``path``, which is made when something has to be kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority_file = path / "ca.json"
        self._virtual_ips_file = path / "virtual-ips.json"

    def authority(self, now: datetime, *, known: Authority | None = None) -> Authority:
        """The certificate authority; a new one where there is none yet.

        Args:
            now: the time, in UTC.
            known: the one that is in use, which neither a new one nor another mesh's may replace.

        Raises:
            StateError: its file can't be read or written, is not private, or holds something else.
        """
        with self._locked():
            found = self._read_authority()
            if known is not None and (found is None or found.trust_domain != known.trust_domain):
                what = "is gone" if found is None else "is another mesh's"
                raise StateError(
                    f"{self.authority_file} {what}: put the one of {known.trust_domain} back, which the certificates"
                    " of this mesh hang on"
                )
            if found is None and self._virtual_ips_file.exists():
                raise StateError(
                    f"{self.authority_file} is gone, though {self._virtual_ips_file.name} is there: put it back, or"
                    " remove that file too to begin anew"
                )
            if found is None:
                found = new_authority(now)
                self._write(self.authority_file, _authority_as_json(found))
            return found

    def rotate(self, now: datetime, *, distrust_old: bool = False) -> Authority:
        """Replace the active root by a new one; with ``distrust_old``, trust no root before it any more.

        Raises:
            StateError: there is no authority yet, or as for `authority`.
        """
        none = StateError(
            f"no certificate authority in {self.path}: it is where gossamer serve --mesh runs, which makes it"
        )
        if not self.authority_file.exists():
            raise none
        with self._locked():
            found = self._read_authority()
            if found is None:
                raise none
            found = rotated(found, now, distrust_old=distrust_old)
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

    def give_virtual_ips(
        self, services: Sequence[str], taken: Mapping[str, str], since: Given = NOTHING_GIVEN
    ) -> Given:
        """Give a virtual IP to each of ``services`` that has none; all that were given.

        Args:
            services: who needs one.
            taken: addresses that services claim themselves, and who does.
            since: what was given when this was last looked at; it may not have become less.

        Raises:
            StateError: as for `virtual_ips`, or they can't be written, or there are no more.
        """
        try:
            before = self.virtual_ips()
            if before.last < since.last:
                raise StateError(
                    f"{self._virtual_ips_file} knows less than what is served: put it back, or services would move to"
                    " addresses that others had"
                )
            if before.to(services, taken) == before:
                return before
            with self._locked():
                after = self.virtual_ips().to(services, taken)
                self._write(self._virtual_ips_file, {"by_service": dict(after.by_service), "last": str(after.last)})
                return after
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
            about = self.authority_file.stat()
            mode = stat.S_IMODE(about.st_mode)
            folder = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"can't read {self.authority_file}: {error.strerror}") from None
        if mode & 0o077:
            raise StateError(
                f"{self.authority_file} holds the mesh's private key and others may read it (mode {mode:04o}): run"
                f" 'chmod 600 {self.authority_file}', and 'gossamer ca rotate --distrust-old' if others had access"
            )
        if about.st_uid not in (0, os.geteuid()) or folder & 0o022:
            raise StateError(
                f"{self.authority_file} may be somebody else's: it belongs to user {about.st_uid}, and its folder has"
                f" mode {folder:04o}; expected this user's, in a folder that only this user writes to"
            )
        data = self._read(self.authority_file)
        try:
            return _authority_from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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
