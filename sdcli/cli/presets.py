"""`sdcli presets`: the named sets of settings, and where one's own are kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sdcli.cli.answer import print_json
from sdcli.machine.folders import config_folder
from sdcli.request import config
from sdcli.request.options import SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import cells, folded, say, show, tell, width


def command() -> Callable[..., None]:
    return make(_show, [o for o in SCREEN if o.field in ("json", "debug")], name="presets",
                help="List the presets: named sets of settings for --preset.")  # fmt: skip


def _show(typed: dict[str, Any]) -> None:
    own = config_folder() / "presets"
    found = config.presets(own)
    if typed.get("json"):
        rows = [{"name": one.name, "description": one.description, "path": str(one.path)} for one in found]
        print_json({"schema": "sdcli.presets/1", "presets": rows})
        return
    widest = max((cells(show(one.name, 40)) for one in found), default=0)
    for one in found:
        name = show(one.name, 40)
        for line in folded(show(one.description), width(sys.stdout), name + " " * (widest + 2 - cells(name))):
            tell(line)
    say(f"Your own: {show(own)}/NAME.toml, with lines as `sdcli config show` names them: steps = 8")
