"""Settings of the xDS port and of what is served on it, handed on as a whole from the flags to each process."""

from __future__ import annotations

from dataclasses import dataclass

from xds.ads.tls import MeshTls, TlsFiles
from xds.mesh.addresses import HostPort
from xds.policy.mesh_wide_settings import MeshWideSettings


@dataclass(frozen=True, slots=True)
class XdsSettings:
    """Settings of a process that serves Envoys."""

    listen: HostPort = HostPort("127.0.0.1", 18000)
    """Address where Envoys connect. Port 0 takes a free one."""
    tls: TlsFiles | MeshTls | None = None
    """TLS of the xDS port, with certificate files or of the mesh; ``None`` is plain text."""
    mesh_wide: MeshWideSettings = MeshWideSettings()
