"""A worker process: serves its share of the streams from facts that another process reads.

``python -m xds.workers.worker FD`` is given one end of a socket pair. It ends when the other end is closed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from xds.ads.listening import ListenError
from xds.ads.loop import EventLoop
from xds.workers.grpc_log import GrpcLog, take_over
from xds.workers.link import Answer, Drain, Facts, Link, Listening, Question, Start, Wanted
from xds.workers.logs import configure
from xds.workers.serving import Serving, prepare_process


async def work(end: socket.socket, grpc_log: GrpcLog) -> None:
    """Serve until the other end has gone."""
    link = await Link.over(end)
    start = await link.receive()
    assert isinstance(start, Start)
    configure(start.log_level, "worker")
    serving = Serving(start.settings, lambda demand: link.send(Wanted(demand)), grpc_log)
    try:
        port = await serving.start(shared=True)
    except ListenError as error:
        link.send(Listening(0, str(error)))
        return
    link.send(Listening(port))
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(serving.watch())
            await _obey(link, serving)
            watching.cancel()
    finally:
        await serving.stop()


async def _obey(link: Link, serving: Serving) -> None:
    while (message := await link.receive()) is not None:
        match message:
            case Facts(batch):
                serving.apply(batch)
            case Question(number, about):
                found = await (serving.sidecars() if about == "sidecars" else serving.families())
                link.send(Answer(number, found))
            case Drain(seconds):
                await serving.drain(seconds)
                return


def main() -> None:
    """Run a worker."""
    # The parent process ends it. A terminal's Ctrl-C and a service manager's SIGTERM reach all processes, so they are
    # ignored here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    grpc_log = take_over(os.environ)
    prepare_process()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(work(socket.socket(fileno=int(sys.argv[1])), grpc_log))


if __name__ == "__main__":
    main()
