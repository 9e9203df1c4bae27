"""Keeps the state of a mesh without a Consul in a folder: its certificate authority and the assigned virtual IPs.

Both have to outlive the process: a new authority would end every connection, a new virtual IP would move a service
under its callers. Files are replaced as a whole, by one writer at a time, and readable by their owner alone.

The folder is opened once for each use, and everything is read and written below that descriptor, after its owner and
mode were checked there, so replacing a folder or a file by a link between a check and a use has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xds.sources.authority import Authority, OldRoot, new_authority, rotated
from xds.sources.file.virtual_ips import ExhaustedError, Given

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
AUTHORITY, VIRTUAL_IPS = "ca.json", "virtual-ips.json"
NOTHING_GIVEN = Given()


class StateError(Exception):
    """State folder that can't be used; the message says which file, why, and what to do."""


class StateFolder:
    """State folder ``path``, which is made when something has to be kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority_file = path / AUTHORITY

    def authority(self, now: datetime, *, known: Authority | None = None) -> Authority:
        """Return the certificate authority; make one where there is none yet.

        Args:
            now: the time, in UTC.
            known: the one that is in use, which neither a new one nor another mesh's may replace.

        Raises:
            StateError: its file can't be read or written, is not private, or holds something else.
        """
        with self._locked() as folder:
            found = self._read_authority(folder)
            if known is not None and (found is None or found.trust_domain != known.trust_domain):
                what = "is gone" if found is None else "is another mesh's"
                raise StateError(
                    f"{self.authority_file} {what}: put the one of {known.trust_domain} back, which the certificates"
                    " of this mesh hang on"
                )
            if found is None and self._read(folder, VIRTUAL_IPS) is not None:
                raise StateError(
                    f"{self.authority_file} is gone, though {VIRTUAL_IPS} is there: put it back, or"
                    " remove that file too to begin anew"
                )
            if found is None:
                found = new_authority(now)
                self._write(folder, AUTHORITY, _authority_as_json(found))
            return found

    def rotate(self, now: datetime, *, distrust_old: bool = False) -> Authority:
        """Replace the active root by a new one; with ``distrust_old``, trust no root before it any more.

        Raises:
            StateError: there is no authority yet, or as for `authority`.
        """
        with self._opened() as folder:
            if folder is not None:
                self._lock(folder)
            found = None if folder is None else self._read_authority(folder)
            if folder is None or found is None:
                raise StateError(
                    f"no certificate authority in {self.path}: it is where gossamer serve --mesh runs, which makes it"
                )
            found = rotated(found, now, distrust_old=distrust_old)
            self._write(folder, AUTHORITY, _authority_as_json(found))
            return found

    def virtual_ips(self) -> Given:
        """Return the virtual IPs that were assigned.

        Raises:
            StateError: their file can't be read, or holds something else.
        """
        with self._opened() as folder:
            return Given() if folder is None else self._virtual_ips(folder)

    def _virtual_ips(self, folder: int) -> Given:
        text = self._read(folder, VIRTUAL_IPS)
        if text is None:
            return Given()
        try:
            data = json.loads(text)
            by_service = {str(name): str(ipaddress.IPv4Address(each)) for name, each in data["by_service"].items()}
            return Given(by_service, ipaddress.IPv4Address(data["last"]))
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise StateError(f"{self.path / VIRTUAL_IPS} is not what gossamer wrote: {error}; restore it") from None

    def give_virtual_ips(
        self, services: Sequence[str], taken: Mapping[str, str], since: Given = NOTHING_GIVEN
    ) -> Given:
        """Give a virtual IP to each of ``services`` that has none; all that were given.

        Args:
            services: who needs one.
            taken: addresses that services claim themselves, and who does.
            since: what was assigned when this was last read; nothing of it may be missing.

        Raises:
            StateError: as for `virtual_ips`, or they can't be written, or there are no more.
        """
        try:
            before = self.virtual_ips()
            if before.last < since.last:
                raise StateError(
                    f"{self.path / VIRTUAL_IPS} knows less than what is served: put it back, or services would move to"
                    " addresses that others had"
                )
            if before.to(services, taken) == before:
                return before
            with self._locked() as folder:
                after = self._virtual_ips(folder).to(services, taken)
                self._write(folder, VIRTUAL_IPS, {"by_service": dict(after.by_service), "last": str(after.last)})
                return after
        except ExhaustedError as error:
            raise StateError(str(error)) from None

    # -- files ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the folder, which is made where there is none, and which only one process changes at a time."""
        with self._explained("use"):
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        with self._opened() as folder:
            if folder is None:
                raise StateError(f"the state folder {self.path} was removed while it was made: start again")
            self._lock(folder)
            yield folder

    def _lock(self, folder: int) -> None:
        with self._explained("lock"):
            fcntl.flock(folder, fcntl.LOCK_EX)  # held until it is closed

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Open the folder; its descriptor, ``None`` where there is none."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and self.path.is_symlink():
                raise StateError(
                    f"the state folder {self.path} is a symbolic link: name what it leads to, with --state"
                ) from None
            raise StateError(
                f"can't use the state folder {self.path}: {error.strerror}; name a writable one with --state"
            ) from None
        try:
            about = os.fstat(descriptor)
            if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
                raise StateError(
                    f"the state folder {self.path} may belong to another user: its owner is user {about.st_uid}, its"
                    f" mode {stat.S_IMODE(about.st_mode):04o}; expected one that only this user can write"
                )
            yield descriptor
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

    def _read(self, folder: int, name: str, *, private: bool = False) -> str | None:
        """Return what a file holds, ``None`` where there is none."""
        file = self.path / name
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise StateError(f"can't read {file}: {what}") from None
        with os.fdopen(descriptor, encoding="utf-8") as opened:
            _check(file, os.fstat(descriptor), private=private)
            try:
                return opened.read()
            except (OSError, ValueError) as error:
                raise StateError(f"can't read {file}: {error}") from None

    def _read_authority(self, folder: int) -> Authority | None:
        text = self._read(folder, AUTHORITY, private=True)
        if text is None:
            return None
        try:
            return _authority_from_json(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"{self.authority_file} is not what gossamer wrote: {error}; restore it") from None

    def _write(self, folder: int, name: str, data: Any) -> None:
        content = json.dumps(data, indent=2).encode() + b"\n"
        temporary = f".{name}.{secrets.token_hex(8)}"
        with self._explained("write to"):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(descriptor)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)


def _check(file: Path, about: os.stat_result, *, private: bool) -> None:
    mode = stat.S_IMODE(about.st_mode)
    if not stat.S_ISREG(about.st_mode):
        raise StateError(f"{file} is not a file")
    if private and mode & 0o077:
        raise StateError(
            f"{file} holds the mesh's private key and others may read it (mode {mode:04o}): run"
            f" 'chmod 600 {file}', and 'gossamer ca rotate --distrust-old' if others had access"
        )
    if about.st_uid not in (0, os.geteuid()) or mode & 0o022:
        raise StateError(
            f"{file} may belong to another user: its owner is user {about.st_uid}, its mode {mode:04o}; expected one"
            " that only this user can write"
        )


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
