"""``gossamer demo``: runs a mesh on this machine, and shows step by step what it does."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

import click

from xds.cli.common import Failure


@click.command()
@click.option("--consul", is_flag=True, help="Use a real Consul in place of a mesh file.")
@click.option("--hold", is_flag=True, help="Keep the mesh running at the end, and print what can be tried.")
@click.option("--keep-logs", is_flag=True, help="Leave the folder with everyone's logs behind.")
def demo(consul: bool, hold: bool, keep_logs: bool) -> None:
    """Watch a mesh work on this machine, without a Consul.

    A small shop, in network namespaces of its own: five hosts, each with an application, a real Envoy and the kernel's
    redirection, and gossamer serve on a mesh file. The tour dials by virtual IP, takes an intention away and puts it
    back, replaces every certificate, loses an instance and the control plane, all under traffic.

    Without root it runs in a user namespace. Leaves nothing behind, however it ends. Exit code 0 if everything was as
    expected.
    """
    from xds.lab import isolation
    from xds.lab.binaries import MissingError
    from xds.lab.network import NetworkError
    from xds.lab.tour import Tour

    try:
        if not isolation.inside():
            sys.stdout.flush()
            isolation.enter(["demo", *sys.argv[2:]])
        logging.basicConfig(level="ERROR")
        folder = Path(tempfile.mkdtemp(prefix="gossamer-logs-")) if keep_logs else isolation.FOLDER
        tour = Tour(consul=consul, hold=hold, folder=folder)
        ok = asyncio.run(_interruptible(tour.run()))
    except asyncio.CancelledError:
        if tour.held:
            click.echo("everything that was started is stopped and removed")
            return
        raise Failure("interrupted; everything that was started is stopped and removed") from None
    except (MissingError, NetworkError) as error:
        raise Failure(str(error)) from error
    if keep_logs:
        click.echo(f"the logs are in {folder}")
    sys.exit(0 if ok else 1)


async def _interruptible(tour: Coroutine[None, None, bool]) -> bool:
    """Run the tour; a signal cancels it, so that it cleans up after itself."""
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    return await tour
