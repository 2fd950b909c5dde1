"""The unmodified webuiapi, from an address of its own where a test has two clients, and what came back."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import requests
import webuiapi
from PIL import Image
from requests.adapters import HTTPAdapter


class From(HTTPAdapter):
    """Every address of 127.0.0.0/8 is this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        super().init_poolmanager(*args, source_address=(self.address, 0), **named)


def client(server: Any, address: str = "127.0.0.1", **named: Any) -> webuiapi.WebUIApi:
    api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", **{"sampler": "Euler a", "steps": 2, **named})
    server.clients.append(api.session)
    api.session.mount("http://", From(address))
    return api


def post(server: Any, path: str, body: Any = None, **named: Any) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60, **named)


def record(image: Image.Image) -> dict[str, Any]:
    """What sdcli wrote into it."""
    chunk: dict[str, Any] = json.loads(image.info["sdcli"])
    return chunk


def job(image: Image.Image) -> dict[str, Any]:
    found: dict[str, Any] = record(image)["job"]
    return found


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
