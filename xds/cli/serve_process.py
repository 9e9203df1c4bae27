"""Runs the process of ``gossamer serve``. It is separate from the flags because gRPC must be imported after these."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from xds.ads.listening import ListenError
from xds.ads.loop import EventLoop
from xds.app import Gossamer, ServeSettings, UnprotectedError
from xds.cli.common import Failure
from xds.sources.consul.settings import SettingsError
from xds.sources.file.document import RefusedError
from xds.sources.file.state import StateError
from xds.workers.grpc_log import GrpcLog
from xds.workers.serving import prepare_process

log = logging.getLogger("gossamer")


def run(settings: ServeSettings, grpc_log: GrpcLog) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        Failure: it can't serve; the message says why.
    """
    try:
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(run_until_signal(settings, grpc_log))
    except (ListenError, SettingsError, RefusedError, StateError, UnprotectedError) as error:
        raise Failure(str(error)) from error


async def run_until_signal(settings: ServeSettings, grpc_log: GrpcLog) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ListenError: an address can't be listened on. UnprotectedError: other hosts reach an address and clients are not
        authenticated. SettingsError, RefusedError, StateError: Consul's settings, the mesh file or its state can't be
        used.
    """
    prepare_process()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if stop.is_set():
            os._exit(1)  # a second signal ends it at once; Envoys keep what they have
        log.info("stopping")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    async with Gossamer(settings, grpc_log) as gossamer:
        await gossamer.serve(until=stop)
