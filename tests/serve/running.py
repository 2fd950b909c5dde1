"""A server on a free port of this machine, with a worker process of its own: nothing between a client and it is made up
but, where a test says so, the drawing."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn

from sdcli.serve.app import app
from sdcli.serve.connections import HeadLimits
from sdcli.serve.metrics import Metrics
from sdcli.serve.rules import Rules, hosts_of
from sdcli.serve.server import config
from sdcli.serve.service import Service


class Serving:
    """The service of a running server, and its address."""

    def __init__(self, service: Service, heads: HeadLimits | None = None, **rules: Any) -> None:
        self.service = service
        self.clients: list[Any] = []  # closed with it
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        port = self._socket.getsockname()[1]
        self.rules = Rules(hosts=hosts_of("127.0.0.1", port), port=port, **rules)
        counted = Metrics(service)
        self.guard = app(service, self.rules, counted=counted, quiet=True)
        self._server = uvicorn.Server(config(self.guard, counted, True, heads or HeadLimits()))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server._serve([self._socket])), daemon=True)
        service.start()
        self._thread.start()

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self._server.should_exit = True
        self.service.stop(grace=5)
        self._thread.join(10)
