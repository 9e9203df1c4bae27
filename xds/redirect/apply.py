"""Applies, verifies and removes the rules, in this or another network namespace."""

from __future__ import annotations

import contextlib
import enum
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from xds.redirect import iptables, nftables
from xds.redirect.rules import Rules

MARK = "gossamer-redirected"
"""Name of an abstract Unix socket. Every process of the network namespace sees it in ``/proc/net/unix``, whatever its
rights, so a container can wait there for the redirection."""


class RedirectError(Exception):
    """Failure to read or change the rules; the message has the tool's own words and what to do."""


class Backend(enum.Enum):
    """Program that changes the kernel's rules."""

    NFT = "nft"
    IPTABLES = "iptables"


def installed_backends() -> list[Backend]:
    """Return the installed backends, the preferred nft first.

    Raises:
        RedirectError: nothing is.
    """
    found = [backend for backend, tool in _TOOLS.items() if shutil.which(tool)]
    if not found:
        raise RedirectError("neither nft nor iptables-restore is installed: install nftables (preferred) or iptables")
    return found


_TOOLS = {Backend.NFT: "nft", Backend.IPTABLES: "iptables-restore"}


class Redirector:
    """Applier of rules with one backend.

    Args:
        backend: which.
        netns: a network namespace, by its name or the path of its file; empty is this one.
    """

    def __init__(self, backend: Backend, netns: str = "") -> None:
        self._backend = backend
        path = netns if "/" in netns else f"/var/run/netns/{netns}"
        self._prefix = ["nsenter", f"--net={path}", "--"] if netns else []

    def text(self, rules: Rules) -> str:
        """Return the text that would be applied."""
        if self._backend is Backend.NFT:
            return nftables.transaction(rules)
        return "".join(iptables.restore(rules, version, "") for version in (4, 6))

    def apply(self, rules: Rules) -> None:
        """Apply ``rules``, in place of any previous rules of Gossamer.

        Raises:
            RedirectError: the kernel or the tool refused. With nft nothing was changed then; with iptables each family
                is one transaction, IPv6 first, so one refused for IPv4 leaves that for IPv6.
        """
        if self._backend is Backend.NFT:
            self._run(["nft", "-f", "-"], nftables.transaction(rules))
        else:
            self._restore(lambda version, saved: iptables.restore(rules, version, saved))

    def undo(self) -> None:
        """Take all rules of ours away; none there is fine.

        Raises:
            RedirectError: the kernel or the tool refused.
        """
        if self._backend is Backend.NFT:
            self._run(["nft", "-f", "-"], nftables.UNDO)
        else:
            self._restore(lambda _version, saved: iptables.undo(saved))

    def is_applied(self, rules: Rules) -> bool:
        """Return whether exactly ``rules`` are applied.

        Raises:
            RedirectError: the tables can't be read.
        """
        if self._backend is Backend.NFT:
            return self._nft_listing(self._prefix) == self._nft_expected(rules)
        return all(
            iptables.same(self._run([f"{tool}-save", "-t", "nat"]), rules, version) for tool, version in _FAMILIES
        )

    def _restore(self, script: Callable[[int, str], str]) -> None:
        for tool, version in _FAMILIES:
            text = script(version, self._run([f"{tool}-save", "-t", "nat"]))
            if text:
                self._run([f"{tool}-restore", "--noflush", "-w", "5"], text)

    def _nft_expected(self, rules: Rules) -> list[Any]:
        """Return how the kernel lists ``rules``: they are applied in a temporary namespace."""
        script = f"nft -f - && nft -j list table inet {nftables.TABLE}"
        listed = self._run(["unshare", "--net", "sh", "-c", script], nftables.transaction(rules), prefix=[])
        return _comparable(listed)

    def _nft_listing(self, prefix: list[str]) -> list[Any]:
        tables = json.loads(self._run(["nft", "-j", "list", "tables"], prefix=prefix))["nftables"]
        ours = {"family": "inet", "name": nftables.TABLE}
        if not any(ours.items() <= entry.get("table", {}).items() for entry in tables):
            return []
        return _comparable(self._run(["nft", "-j", "list", "table", "inet", nftables.TABLE], prefix=prefix))

    def _run(self, command: list[str], text: str = "", *, prefix: list[str] | None = None) -> str:
        whole = [*(self._prefix if prefix is None else prefix), *command]
        try:
            done = subprocess.run(whole, input=text, capture_output=True, text=True, check=False, timeout=60)
        except FileNotFoundError as error:
            raise RedirectError(f"{error.filename} is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise RedirectError(f"{' '.join(whole)} did not finish within a minute") from error
        if done.returncode != 0:
            words = " ".join((done.stderr or done.stdout).split())
            raise RedirectError(
                f"{' '.join(whole[:4])} failed: {words or f'exit code {done.returncode}'}{_hint(words)}"
            )
        return done.stdout


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Have the mark of the redirection in this network namespace during a ``with`` block.

    Raises:
        RedirectError: another process has it.
    """
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            mark.bind(f"\0{MARK}")
        except OSError as error:
            raise RedirectError(
                f"can't open the abstract socket @{MARK}: {error.strerror}; another process holds the redirection of"
                " this network namespace"
            ) from error
        yield


_FAMILIES = (("ip6tables", 6), ("iptables", 4))


def _hint(words: str) -> str:
    if words.startswith("nsenter: cannot open"):
        return "; name a network namespace as in 'ip netns', or by the path of its file"
    if "not permitted" in words or "must be root" in words or "Permission denied" in words:
        return "; it needs root or CAP_NET_ADMIN in that network namespace"
    if "not supported" in words or "No such file or directory" in words:
        return "; it needs a kernel of 5.2 or newer with nftables NAT (module nft_chain_nat)"
    return ""


def _comparable(listing: str) -> list[Any]:
    """Return a table as nft lists it, without the numbers that differ between listings."""
    entries: list[Any] = []
    for entry in json.loads(listing)["nftables"]:
        for kind in ("chain", "rule"):
            if kind in entry:
                entries.append({k: v for k, v in entry[kind].items() if k not in ("handle", "index")} | {"is": kind})
    return sorted(entries, key=lambda e: (e["is"], e.get("chain", e.get("name"))))
