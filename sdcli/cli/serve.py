"""`sdcli serve`: a model that stays loaded, behind the APIs that other programs speak."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from sdcli.cli import complete, plan_screen, serve_options
from sdcli.cli.answer import say_note
from sdcli.cli.pull import plan_with_model
from sdcli.cli.serve_options import Asked
from sdcli.errors import SdcliError, Unsafe, Usage
from sdcli.machine import installation
from sdcli.plan.plan import Plan
from sdcli.request.options import OPTIONS, SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import counted, quoted, say, show, speaks_unicode, width

_NOT_HERE = frozenset({
    "prompts", "prompts_file", "seeds", "num_images", "settings_from", "overwrite", "filmstrip", "image", "mask",
    "control", "reference", "reference_mask", "outpaint",
})  # fmt: skip


def command() -> Callable[..., None]:
    screen = [option for option in SCREEN if option.field in ("quiet", "engine", "debug")]
    drawing = [option for option in OPTIONS if option.field not in _NOT_HERE]
    options = [*serve_options.FLAGS, *drawing, serve_options.DEVICES, *screen]
    return make(_serve, options, name="serve", help="Serve images over HTTP.", complete=complete.asked())


def _serve(typed: dict[str, Any]) -> None:
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        line = installation.adding("serve", installation.find())
        raise Usage("sdcli serve needs packages that are not installed", hint=line)
    from sdcli.serve import preparing
    from sdcli.serve.service import Service

    asked = serve_options.taken(typed)
    quiet = bool(typed.pop("quiet", False))
    _check_reach(asked)
    asking = {**typed, "words": (preparing.PROMPT,), "quiet": quiet}
    plan_with_model(asking, command="plan")  # downloads what is missing
    service = Service(_settings(asked, typed))
    try:
        for desk in service.desks if asked.preload else ():
            desk.worker.start()
        from sdcli.serve import log, server  # takes as long as its process needs to begin

        if asked.log_prompts:
            service.watch(log.prompts)
        plan = service.default_plan()
        with _listening(asked) as listening:
            rules = _rules(asked, port := listening.getsockname()[1])
            ended = server.serve(
                service, listening, rules, grace=asked.grace, quiet=quiet,
                on_ready=lambda: None if quiet else _announce(asked, port, service.default_model(), plan),
            )  # fmt: skip
    except BaseException:
        for desk in service.desks:
            desk.worker.close()
        service.clean_up()
        raise
    raise _completed(ended, service.drawn, service.unfinished)


def _check_reach(asked: Asked) -> None:
    """Others can reach it only with a key."""
    from sdcli.serve.rules import is_loopback

    if not is_loopback(asked.host) and not asked.keys:
        raise Unsafe(
            f"{show(asked.host, 60)} can be reached from other machines, and no key is asked for",
            hint=f"openssl rand -hex 24 > key; chmod 600 key\nsdcli serve --host {asked.host} --api-key-file key",
        )


def _settings(asked: Asked, typed: dict[str, Any]) -> Any:
    from sdcli.serve.bounds import Bounds
    from sdcli.serve.line import Room
    from sdcli.serve.service import Settings

    width, height = asked.max_size
    return Settings(
        typed=typed, engine=str(typed.get("engine", "local")), store=asked.store, keep=asked.keep,
        idle=asked.idle, preload=asked.preload,
        room=Room(requests=asked.max_queue, images=4 * asked.max_queue),
        bounds=Bounds(images=asked.max_images, steps=asked.max_steps, width=width, height=height),
    )  # fmt: skip


def _rules(asked: Asked, port: int) -> Any:
    from sdcli.serve import rules

    return rules.Rules(
        hosts=rules.hosts_of(asked.host, port, (*asked.allow_host, *_own_names(asked.host))), port=port,
        any_address=rules.is_wildcard(asked.host), origins=frozenset(asked.allow_origin),
        keys=tuple(map(rules.digest, asked.keys)),
    )  # fmt: skip


def _own_names(host: str) -> tuple[str, ...]:
    """What others call this machine, if they can reach it."""
    from sdcli.serve.rules import is_loopback

    return () if is_loopback(host) else (socket.gethostname(),)


def _listening(asked: Asked) -> socket.socket:
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    try:
        return socket.create_server((asked.host, asked.port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        raise Usage(f"--port {asked.port}: another program listens there", hint=f"--port {asked.port + 1}")
    if number == errno.EACCES:
        raise Usage(f"--port {asked.port}: only the administrator may listen there", hint="--port 7860")
    raise Usage(f"--host {show(asked.host, 60)}: this machine has no such address", hint=f"--host {serve_options.HOST}")


# --- what is said


def _announce(asked: Asked, port: int, model: str, plan: Plan) -> None:
    from sdcli.serve.rules import bracketed, is_wildcard

    name = "127.0.0.1" if is_wildcard(asked.host) else bracketed(asked.host)
    url = f"http://{name}:{port}"
    say(f"serving {show(model, 100)} at {url}")
    for line in plan_screen.render_summary(plan, width(sys.stderr), not speaks_unicode(sys.stderr)):
        say(line)
    for warning in plan.warnings:
        say_note(warning.message)
    say(f"  try: {curl(url, asked)}")


def curl(url: str, asked: Asked, windows: bool = os.name == "nt") -> str:
    """A line that draws an image when it is pasted."""
    key = ""
    if asked.keys:
        shown = f"$(head -n 1 {quoted(asked.key_file)})" if asked.key_file else f"${serve_options.KEY_VARIABLE}"
        key = f' -H "Authorization: Bearer {shown}"'
    body = '"{\\"prompt\\": \\"a cat\\"}"'
    line = f'curl -s {url}/v1/images/generations{key} -H "Content-Type: application/json" -d {body}'
    return f"{line} -o cat.json" if windows else f"{line} | grep -o '[^\"]\\{{400,\\}}' | base64 -d > cat.png"


def _completed(error: SdcliError, drawn: int, unfinished: tuple[str, ...]) -> SdcliError:
    if drawn:
        error.done = counted(drawn, "image")
    if unfinished:
        error.hint = "\n".join(f"sdcli resume {name}" for name in unfinished[:3])
    return error
