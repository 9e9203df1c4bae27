"""``gossamer demo``: the main job, shown on this machine with a real Consul and real Envoys."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import click

from xds.cli.common import Failure


@click.command()
@click.option("--keep-logs", is_flag=True, help="Leave the folder with everyone's logs behind.")
def demo(keep_logs: bool) -> None:
    """Watch the main job on this machine: two services, two sidecars, no upstream configured.

    Starts a Consul, a gossamer serve, and two hosts in network namespaces, each with an application, an Envoy and
    the kernel's redirection. web dials the virtual IP of api; then the intention that allows it is taken away and put
    back. Needs root; leaves nothing behind. Exit code 0 if everything was as expected.
    """
    from xds.lab.binaries import MissingError
    from xds.lab.network import NetworkError
    from xds.lab.tour import Tour

    logging.basicConfig(level="ERROR")

    async def tour() -> bool:
        running = asyncio.current_task()
        assert running is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        return await Tour(keep_logs=keep_logs).run()

    try:
        ok = asyncio.run(tour())
    except asyncio.CancelledError:
        raise Failure("interrupted; everything that was started is stopped and removed") from None
    except (MissingError, NetworkError) as error:
        raise Failure(str(error)) from error
    sys.exit(0 if ok else 1)
