"""The options of `sdcli serve` that are not generate's, and what they mean."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdcli import reading
from sdcli.errors import Unsafe, Usage
from sdcli.request import jobs
from sdcli.request.options import CPU_AUTO, MEMORY, Option
from sdcli.terminal import quoted, show

SERVER, LIMITS = "Server", "Limits"
HOST, PORT, GRACE, KEEP, QUEUE = "127.0.0.1", 7860, 30.0, 24 * 3600.0, 16
KEY_VARIABLE = "SDCLI_API_KEY"
SHORTEST_KEY, LARGEST_KEY_FILE = 16, 64 << 10

FLAGS: tuple[Option, ...] = (
    Option(field="host", flags=("--host",), metavar="ADDRESS", panel=SERVER,
           help=f"Address to listen at; default {HOST}. Any but this machine's own needs a key."),
    Option(field="port", flags=("--port",), metavar="N", panel=SERVER,
           help=f"Port to listen at; default {PORT}, 0 takes a free one."),
    Option(field="api_key_file", flags=("--api-key-file",), metavar="FILE", panel=SERVER,
           help=f"Keys that requests must have, one a line, instead of {KEY_VARIABLE}; only you may read the file."),
    Option(field="allow_host", flags=("--allow-host",), metavar="NAME[:PORT]", repeatable=True, panel=SERVER,
           help="Another name this server is called by, as behind a proxy."),
    Option(field="allow_origin", flags=("--allow-origin",), metavar="URL", repeatable=True, panel=SERVER,
           help="Let pages of this origin ask, e.g. https://app.example; none may otherwise."),
    Option(field="store", flags=("--store/--no-store",), switch=True, panel=SERVER,
           help="Keep images and their records in the output folder (default), or nothing after --keep."),
    Option(field="keep", flags=("--keep",), metavar="TIME", panel=SERVER,
           help="How long a finished request's images can be asked for, e.g. 90m or 24h (default)."),
    Option(field="preload", flags=("--preload/--no-preload",), switch=True, panel=SERVER,
           help="Load the model at once (default), or with the first request."),
    Option(field="idle", flags=("--idle",), metavar="TIME", panel=SERVER,
           help="Unload the model after this long without a request; never if omitted."),
    Option(field="grace", flags=("--grace",), metavar="TIME", panel=SERVER,
           help=f"How long the image being drawn may take once the server is told to end; default {GRACE:.0f}s."),
    Option(field="log_prompts", flags=("--log-prompts",), switch=True, panel=SERVER,
           help="Print prompts too; the log never holds any otherwise."),
    Option(field="max_queue", flags=("--max-queue",), metavar="N", panel=LIMITS,
           help=f"Requests that may wait, half of them one client's; default {QUEUE}, of four times as many images."),
    Option(field="max_images", flags=("--max-images",), metavar="N", panel=LIMITS,
           help="Images of one request; default 10."),
    Option(field="max_steps", flags=("--max-steps",), metavar="N", panel=LIMITS,
           help="Steps of an image; default 150."),
    Option(field="max_size", flags=("--max-size",), metavar="WxH", panel=LIMITS,
           help="Pixels of an image, whatever its shape; default 2048x2048."),
)  # fmt: skip
DEVICES = Option(
    field="devices", flags=("--devices",), metavar="LIST", panel=MEMORY,
    help="Draw on several devices, from one queue: all, 0,1, cuda:0,cpu, or cpu:2x1 for 2 processes of 1 thread.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    host: str
    port: int
    keys: tuple[str, ...]
    key_file: str | None
    allow_host: tuple[str, ...]
    allow_origin: tuple[str, ...]
    store: bool
    keep: float
    grace: float
    idle: float | None
    preload: bool
    log_prompts: bool
    max_queue: int
    max_images: int
    max_steps: int
    max_size: tuple[int, int]


def taken(typed: dict[str, Any]) -> Asked:
    """These options, out of what was typed; generate's stay."""
    if typed.get("devices") == CPU_AUTO:
        raise Usage(
            f"--devices {CPU_AUTO} is for lists, whose length is known: one image after the other is drawn soonest by "
            "one process, many at once by several",
            hint="--devices cpu:2x1",
        )
    file = typed.pop("api_key_file", None)
    return Asked(
        host=_host(typed.pop("host", HOST)), port=_whole(typed, "port", PORT, 0, 65_535), keys=_keys(file),
        key_file=file, allow_host=tuple(map(_name, typed.pop("allow_host", ()))),
        allow_origin=tuple(map(_origin, typed.pop("allow_origin", ()))), store=bool(typed.pop("store", True)),
        keep=_duration(typed, "keep", KEEP), grace=_duration(typed, "grace", GRACE),
        idle=_duration(typed, "idle", 600) if "idle" in typed else None, preload=bool(typed.pop("preload", True)),
        log_prompts=bool(typed.pop("log_prompts", False)), max_queue=_whole(typed, "max_queue", QUEUE, 1, 10_000),
        max_images=_whole(typed, "max_images", 10, 1, 1000), max_steps=_whole(typed, "max_steps", 150, 1, 10_000),
        max_size=jobs.parse_sides(str(typed.pop("max_size", "2048x2048")), "--max-size"),
    )  # fmt: skip


def _whole(typed: dict[str, Any], field: str, usual: int, least: int, most: int) -> int:
    text = str(typed.pop(field, usual)).strip()
    flag = "--" + field.replace("_", "-")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise Usage(f'{flag}: "{show(text, 40)}" is not a whole number', hint=f"{flag} {usual}")
    if not least <= int(text) <= most:
        raise Usage(f"{flag} {int(text)} is not between {least} and {most}", hint=f"{flag} {usual}")
    return int(text)


_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def _duration(typed: dict[str, Any], field: str, usual: float) -> float:
    """Seconds: 30, 30s, 90m, 24h, 7d."""
    text = str(typed.pop(field, f"{usual:.0f}")).strip().lower()
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*(s|m|min|h|d)?", text, re.ASCII)
    if match is None:
        raise Usage(f'--{field}: "{show(text, 40)}" is not a time', hint=f"--{field} 30s   (or 5m, 24h, 7d)")
    return float(match[1]) * _UNITS[match[2] or ""]


def _host(text: str) -> str:
    name = text.strip().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", name, re.ASCII):
        raise Usage(f'--host: "{show(text, 60)}" is not an address', hint=f"--host {HOST}")
    return name


def _name(text: str) -> str:
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(:\d{1,5})?", text.strip(), re.ASCII):
        return text.strip().lower()
    parts = urlsplit(text if "//" in text else f"//{text}")
    known = parts.netloc if re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", parts.netloc, re.ASCII) else "sd.example"
    raise Usage(f'--allow-host: "{show(text, 60)}" is not a name', hint=f"--allow-host {known}")


def _origin(text: str) -> str:
    """Scheme, name and port, as a browser writes them."""
    origin = text.strip().removesuffix("/").lower()
    if re.fullmatch(r"[a-z][a-z0-9+.-]{1,30}://(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:\d{1,5})?", origin, re.ASCII):
        return origin
    if text.strip() == "*":
        raise Usage(
            "--allow-origin *: every page on the web could draw here", hint="--allow-origin https://app.example"
        )
    host = re.sub(r"^.*//|/.*$", "", origin)
    known = host if re.fullmatch(r"[a-z0-9.-]{1,253}(:\d{1,5})?", host, re.ASCII) else "app.example"
    raise Usage(f'--allow-origin: "{show(text, 60)}" is not an origin', hint=f"--allow-origin https://{known}")


# --- keys


def _keys(file: str | None) -> tuple[str, ...]:
    """Of the file, else of the environment, from which it is taken: the processes that draw need none."""
    known = os.environ.pop(KEY_VARIABLE, "").strip()
    if file is None and not known:
        return ()
    keys = _read(Path(file).expanduser()) if file is not None else (known,)
    where = show(file, 200) if file is not None else KEY_VARIABLE
    if not keys:
        raise Usage(f"{where} holds no key", hint=f"openssl rand -hex 24 > {quoted(str(file))}")
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise Unsafe(
                f"a key in {where} is no key: at least {SHORTEST_KEY} letters and digits, which nobody can guess",
                hint="openssl rand -hex 24",
            )
    return keys


def _read(path: Path) -> tuple[str, ...]:
    try:
        with reading.opened(path) as file:
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                name = quoted(str(path))
                raise Unsafe(f"others may read the key in {show(path, 200)}", hint=f"chmod 600 {name}")
            content = reading.bounded(file, LARGEST_KEY_FILE)
    except FileNotFoundError:
        raise Usage(
            f"--api-key-file: {show(path, 200)} does not exist",
            hint=f"umask 077; openssl rand -hex 24 > {quoted(str(path))}",
        ) from None
    except OSError as error:
        raise reading.cannot_read(path, error, hint="another file") from None
    return tuple(filter(None, (line.strip() for line in content.decode("utf-8", "replace").splitlines())))
