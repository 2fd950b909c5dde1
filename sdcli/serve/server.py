"""The server: uvicorn around the application, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from sdcli.errors import Bug, Interrupted, SdcliError, Terminated
from sdcli.serve import log
from sdcli.serve.app import app
from sdcli.serve.connections import Connection, HeadLimits
from sdcli.serve.guard import Guard
from sdcli.serve.metrics import Metrics
from sdcli.serve.rules import Rules
from sdcli.serve.service import Service

LAST_WORDS = 5  # seconds for answers that are on their way once nothing is drawn any more
SWITCH = 0.001  # seconds after which another thread has its turn, of Python's own 5 ms
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Server(uvicorn.Server):
    """Leaves signals to who runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Ending:
    """The first signal ends the server in order, another one at once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.asked = asyncio.Event()
        self.error: SdcliError | None = None
        self._loop = asyncio.get_running_loop()

    def __call__(self, number: int, frame: object) -> None:
        error = Interrupted("interrupted") if number == signal.SIGINT else Terminated("terminated")
        if self.error is not None:
            for desk in self.service.desks:
                desk.worker.kill()
            self.service.clean_up()
            os._exit(error.code)
        self.error = error
        self._loop.call_soon_threadsafe(self.asked.set)


def serve(
    service: Service, listening: socket.socket, rules: Rules, *, grace: float, on_ready: Callable[[], None],
    quiet: bool = False, heads: HeadLimits | None = None,
) -> SdcliError:  # fmt: skip
    """Until a signal comes; the error that says which."""
    silence()
    _take_turns()
    counted = Metrics(service)
    guard = app(service, rules, counted=counted, quiet=quiet)
    server = Server(config(guard, counted, quiet, heads or HeadLimits()))
    return asyncio.run(_serve(server, guard, service, listening, grace, on_ready))


def config(guard: Guard, counted: Metrics, quiet: bool, limits: HeadLimits) -> uvicorn.Config:
    def refused(status: int, client: str) -> None:
        counted.refused(status, client)
        if not quiet:
            log.refused(status, client)

    protocol: Any = functools.partial(Connection, limits=limits, refused=refused)
    application: Any = guard
    return uvicorn.Config(
        application, http=protocol, loop="asyncio", ws="none", lifespan="off", interface="asgi3", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=LAST_WORDS,
    )  # fmt: skip


def _take_turns() -> None:
    """Threads that plan hold up the one that draws for no longer than a request costs. Python itself collects garbage
    in the middle of whatever it is at: the desk does so while its worker draws, the service every few seconds."""
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()  # what is loaded now stays
    gc.disable()


def silence() -> None:
    """What uvicorn would say, and its tracebacks, nobody is to read: what matters of it the guard says."""
    logger = logging.getLogger("uvicorn")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())


async def _serve(
    server: Server, guard: Guard, service: Service, listening: socket.socket, grace: float, on_ready: Callable[[], None]
) -> SdcliError:  # fmt: skip
    ending = Ending(service)
    with heeded(ending):
        service.start()
        serving = asyncio.create_task(server.serve([listening]))
        on_ready()
        await _either(serving, asyncio.create_task(ending.asked.wait()))
        guard.closing = True
        await asyncio.to_thread(service.stop, grace)
        server.should_exit = True
        await serving
    assert ending.error is not None
    return ending.error


async def _either(serving: asyncio.Task[None], asked: asyncio.Task[Any]) -> None:
    """Waits for a signal; a server that ends without one has failed."""
    await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        raise Bug("the server ended by itself")


@contextlib.contextmanager
def heeded(ending: Ending) -> Iterator[None]:
    """Inside, signals go to `ending`; one that the caller has switched off stays off."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, ending)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
