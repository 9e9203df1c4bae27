"""Runs a mesh on one machine: hosts in network namespaces, a real Consul, real Envoys, the kernel's real redirection.

The demo, the integration tests and the benchmarks all run on it. No traffic leaves the machine: hosts are connected by
a bridge in a namespace of its own, and everything is removed when the `Lab` is closed.
"""

from __future__ import annotations

import os

# gRPC's own lines on stderr repeat what the lab's applications report.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
