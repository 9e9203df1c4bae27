"""Fixtures and hooks for all tests."""

from __future__ import annotations

import os

# The lab's processes are forked, and gRPC's handlers around a fork now and then end the child before it becomes what it
# is to be, if unit tests have used gRPC in the same process. gRPC reads this when it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
