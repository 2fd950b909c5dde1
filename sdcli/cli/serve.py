"""`sdcli serve`: a model that stays loaded, behind the APIs that other programs speak."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import Any

from sdcli.cli import complete
from sdcli.errors import DeviceUnusable, Unsafe, Usage
from sdcli.machine import installation
from sdcli.request.options import OPTIONS, SCREEN, Option
from sdcli.request.options import command as make
from sdcli.terminal import say, show

SERVER = "Server"
FLAGS = (
    Option(field="host", flags=("--host",), metavar="ADDRESS", panel=SERVER, help="Address to listen at."),
    Option(field="port", flags=("--port",), metavar="N", panel=SERVER, help="Port to listen at; 0 takes a free one."),
    Option(field="grace", flags=("--grace",), metavar="SECONDS", panel=SERVER,
           help="How long what is being drawn may go on after SIGTERM."),
    Option(field="store", flags=("--store/--no-store",), switch=True, panel=SERVER,
           help="Keep images in the output folder, as generate does."),
)  # fmt: skip
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST, PORT, GRACE = "127.0.0.1", 7860, 30.0


def command() -> Callable[..., None]:
    screen = [option for option in SCREEN if option.field in ("engine", "debug")]
    options = [*(option for option in OPTIONS if option.field not in _NOT_HERE), *FLAGS, *screen]
    return make(_serve, options, name="serve", help="Serve images over HTTP.", complete=complete.values)


_NOT_HERE = frozenset({"prompts", "prompts_file", "seeds", "num_images", "settings_from", "overwrite", "filmstrip"})


def _serve(typed: dict[str, Any]) -> None:
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        line = installation.adding("serve", installation.find())
        raise Usage("sdcli serve needs packages that are not installed", hint=line)
    from sdcli.serve.server import serve
    from sdcli.serve.service import Service, Settings

    host = str(typed.pop("host", HOST))
    if host not in LOOPBACK:
        message = f"{show(host, 60)} can be reached from other machines, and no key is asked for"
        raise Unsafe(message, hint="sdcli serve")
    port, grace = int(typed.pop("port", PORT)), float(typed.pop("grace", GRACE))
    settings = Settings(store=bool(typed.pop("store", True)), engine=str(typed.get("engine", "local")), typed=typed)
    service = Service(settings)
    listening = _listening(host, port)
    url = f"http://{host}:{listening.getsockname()[1]}"
    serve(service, listening, grace=grace, on_ready=lambda: say(f"serving {service.default_model()} at {url}"))


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise DeviceUnusable(f"cannot listen at {host}:{port}: {error.strerror}", hint="sdcli serve --port 0") from None
