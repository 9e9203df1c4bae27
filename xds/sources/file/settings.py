"""Paths of a mesh that is in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Paths of a mesh without a Consul."""

    mesh: Path
    state: Path
    """The folder of its certificate authority and its virtual IPs."""

    @classmethod
    def resolve(cls, mesh: Path, state: Path | None) -> FileSettings:
        """Return the settings for a mesh file; its state is kept beside it where no folder is named."""
        return cls(mesh, state or mesh.parent / f"{mesh.name}.state")


def roots_file(mesh: Path) -> Path:
    """Return the file with the roots of a mesh file's authority (PEM), with which sidecars verify the control plane."""
    return mesh.parent / f"{mesh.name}.roots.pem"
