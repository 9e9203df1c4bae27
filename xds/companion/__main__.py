"""The companion's process: ``python -m xds.companion FD``. FD holds its tasks (:class:`xds.companion.tasks.Tasks`).

There are two processes: the first only waits, and starts the second again when it fails. Both end with Envoy, whose
child the first is.
"""

from __future__ import annotations

import os
import sys
import time

from xds.companion.tasks import Tasks, end_with_parent

RESTART_PAUSE = 1.0
"""Seconds before a companion that ended is started again."""


def main() -> None:
    """Run the tasks until Envoy ends."""
    tasks = Tasks.from_file(int(sys.argv[1]))
    end_with_parent(tasks.envoy)
    first = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            end_with_parent(first)
            # Imported in this process only, so that the one that waits stays small.
            from xds.companion.running import run

            run(tasks)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        print(  # noqa: T201 - this process has no logging
            f"gossamer sidecar: the companion ended (status {status}); starting it again", file=sys.stderr, flush=True
        )
        time.sleep(RESTART_PAUSE)


main()
