"""`sdcli generate`: what is asked for, planned and drawn. Decisions are made elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdcli import schema
from sdcli.asking import not_needed
from sdcli.asking.planning import PlannedRun, plan_for
from sdcli.cli import clusters, complete, drawing, input_images
from sdcli.cli.answer import Answered, print_json
from sdcli.cli.pull import plan_with_model
from sdcli.plan.refusal import refused
from sdcli.record import names
from sdcli.request.jobs import LONGEST_PROMPT
from sdcli.request.options import DEVICES, DRY_RUN, OPTIONS, SAVE_CONTROL, SCREEN, SHARD, SWEEP
from sdcli.request.options import command as make
from sdcli.terminal import show, tell

if TYPE_CHECKING:
    from sdcli.draw.engines import Engine


def command() -> Callable[..., None]:
    options = [*OPTIONS, *not_needed.FLAGS, SWEEP, *SCREEN, SAVE_CONTROL, DRY_RUN, SHARD, DEVICES]
    return make(
        _generate, options, name="generate", words="PROMPT", complete=complete.asked(),
        help='Draw images from prompts: sdcli generate "a cat" -n 4',
    )  # fmt: skip


def _generate(typed: dict[str, Any]) -> None:
    if typed.get("dry_run"):
        _print_prompts(typed)
        return
    with clusters.joined(typed) as cluster:
        seats = cluster.seats() if cluster is not None else ()
        raise Answered(draw(plan_with_model(typed, cluster=seats).shared, typed, cluster))


def _print_prompts(typed: dict[str, Any]) -> None:
    """A line for each image, in the order they would be drawn; what is read from stdin as it comes."""
    planned = plan_for(typed, "plan").shared
    if typed.get("json"):
        print_json(schema.to_json(planned.plan))
        return
    for job in itertools.chain(planned.plan.jobs, planned.later or ()):
        tell(show(job.prompt, LONGEST_PROMPT))


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
