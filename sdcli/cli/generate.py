"""`sdcli generate`: what is asked for, planned and drawn. Decisions are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdcli.asking import not_needed
from sdcli.asking.planning import PlannedRun
from sdcli.cli import clusters, complete, drawing, input_images
from sdcli.cli.answer import Answered
from sdcli.cli.pull import plan_with_model
from sdcli.plan.refusal import refused
from sdcli.record import names
from sdcli.request.options import DEVICES, OPTIONS, SAVE_CONTROL, SCREEN, SHARD
from sdcli.request.options import command as make

if TYPE_CHECKING:
    from sdcli.draw.engines import Engine


def command() -> Callable[..., None]:
    options = [*OPTIONS, *not_needed.FLAGS, *SCREEN, SAVE_CONTROL, SHARD, DEVICES]
    return make(
        _generate, options, name="generate", words="PROMPT", complete=complete.asked(),
        help='Draw images from prompts: sdcli generate "a cat" -n 4',
    )  # fmt: skip


def _generate(typed: dict[str, Any]) -> None:
    with clusters.joined(typed) as cluster:
        seats = cluster.seats() if cluster is not None else ()
        raise Answered(draw(plan_with_model(typed, cluster=seats).shared, typed, cluster))


def draw(planned: PlannedRun, typed: dict[str, Any], cluster: Engine | None = None) -> int:
    """One run, from its plan to the last word on the screen; its exit code. `cluster` draws it, if there is one."""
    plan = planned.plan
    if not plan.fits:
        raise refused(plan)
    destination = names.prepare(plan.request, count=len(plan.jobs), model=plan.model.name, origins=plan.origins)
    screen = drawing.Screen(typed, plan)
    screen.announce()
    if typed.get("save_control"):
        for path in input_images.save_controls(plan.jobs, destination.folder):
            screen.saved_control(path)
    return drawing.draw(typed, planned, destination, screen, cluster=cluster)
