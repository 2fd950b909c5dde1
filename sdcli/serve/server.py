"""The server: uvicorn around the application, until a signal ends it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sdcli.serve.service import Service


def serve(service: Service, listening: socket.socket, *, grace: float, on_ready: Callable[[], None]) -> None:
    """Until it is interrupted; the exception that says so is raised here again once the service has ended."""
    import uvicorn

    from sdcli.serve.app import app

    config = uvicorn.Config(
        app(service), http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(grace) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    service.start()
    on_ready()
    try:
        asyncio.run(server._serve([listening]))
    finally:
        service.stop(grace)
