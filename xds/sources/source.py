"""Interface of a source of a mesh: a Consul, a mesh file. `xds.app` joins one of them with what serves."""

from __future__ import annotations

from typing import Protocol

from xds.mesh.mesh import Demand


class Source(Protocol):
    """Source of a mesh. It is given a sink for batches of facts when it is made.

    A batch has a fact, or ``None`` for one that does not exist any more, for each key. `xds.mesh.mesh` has the keys:
    ``BASE_FACTS`` are always delivered, the others when they are demanded.
    """

    async def asks_for_tokens(self) -> bool:
        """Return whether a client must present a token to get a certificate; true while that is unknown."""

    def demand(self, demand: Demand) -> None:
        """Read what ``demand`` names from now on, and stop reading everything else."""

    async def run(self) -> None:
        """Read until cancelled."""

    async def close(self) -> None:
        """Close its connections."""

    def troubles(self) -> dict[str, str]:
        """Return what can't be read at the moment, with the reason, by name."""
