"""`sdcli plan`: what an image would need, every sensible setup for it, and the one that would be chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from sdcli import schema
from sdcli.asking import not_needed
from sdcli.asking.planning import plan_for
from sdcli.cli import builtin, complete, plan_screen
from sdcli.cli.answer import print_json
from sdcli.machine.memory import disk_free
from sdcli.plan.refusal import refused
from sdcli.request.options import AS_IF, DEVICES, OPTIONS, SCREEN, SHARD, SWEEP
from sdcli.request.options import command as make
from sdcli.terminal import speaks_unicode, tell, width


def command() -> Callable[..., None]:
    screen = [option for option in SCREEN if option.field in ("json", "debug")]
    return make(
        _plan, [*OPTIONS, *not_needed.FLAGS, SWEEP, AS_IF, SHARD, DEVICES, *screen], name="plan", words="PROMPT",
        complete=complete.asked(), help="Show what an image would need, before anything is loaded.",
    )  # fmt: skip


def _plan(typed: dict[str, Any]) -> None:
    plan = plan_for(typed, "plan").shared.plan
    if typed.get("json"):
        print_json(schema.to_json(plan))
        raise typer.Exit(0 if plan.fits else 4)
    free = disk_free(Path(plan.request.output or "."))
    for line in plan_screen.render(plan, width(sys.stdout), not speaks_unicode(sys.stdout), free):
        tell(line)
    if plan.model.kind == "builtin":
        tell(f"  {builtin.photographs()}")
    if not plan.fits:
        raise refused(plan)
