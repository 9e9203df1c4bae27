"""A mesh on one machine: hosts in network namespaces, a real Consul, real Envoys, the kernel's real redirection.

The demo, the integration tests and the benchmarks all run on it. Nothing leaves the machine: hosts talk over a bridge
that lives in a namespace of its own, and everything is gone when the `Lab` is closed.
"""

from __future__ import annotations

import os

# What gRPC writes to stderr by itself, in the lab's applications, repeats what is said here, or worries about nothing.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
