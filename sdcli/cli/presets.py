"""`sdcli presets`: the named sets of settings, and the folder of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdcli import schema
from sdcli.cli.answer import print_json
from sdcli.machine.folders import config_folder
from sdcli.request import config
from sdcli.request.options import SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import cells, folded, say, show, tell, width


@dataclass(frozen=True, kw_only=True)
class PresetFile:
    name: str
    description: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Presets:
    schema: str = "sdcli.presets/1"
    presets: tuple[PresetFile, ...]


def command() -> Callable[..., None]:
    return make(_show, [o for o in SCREEN if o.field in ("json", "debug")], name="presets",
                help="List the presets: named sets of settings for --preset.")  # fmt: skip


def _show(typed: dict[str, Any]) -> None:
    folder = config_folder() / "presets"
    presets = config.presets(folder)
    if typed.get("json"):
        rows = tuple(PresetFile(name=p.name, description=p.description, path=str(p.path)) for p in presets)
        print_json(schema.to_json(Presets(presets=rows)))
        return
    widest = max((cells(show(preset.name, 40)) for preset in presets), default=0)
    for preset in presets:
        name = show(preset.name, 40)
        for line in folded(show(preset.description), width(sys.stdout), name + " " * (widest + 2 - cells(name))):
            tell(line)
    say(f"Add your own as {show(folder)}/NAME.toml, with settings named as in `sdcli config show`: steps = 8")
