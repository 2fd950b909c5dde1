"""Flags that change nothing here: memory flags of other programs, and what is for other models. Accepted, and answered
in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan, PlanWarning
from sdcli.request.options import Option, flag_of

CODE = "flag-not-needed"
_LIKE = {"medvram": "model-offload", "lowvram": "group-offload"}
FLAGS = tuple(
    Option(field=name, flags=(f"--{name}",), switch=True, hidden=True, panel="Memory", help="Not needed.")
    for name in _LIKE
)


def not_needed(typed: Mapping[str, Any], plan: Plan) -> tuple[PlanWarning, ...]:
    """One for each such flag that was typed; the plan is as without it."""
    messages = [f"--{name} is not needed: {_reason(choice, plan)}" for name, choice in _LIKE.items() if typed.get(name)]
    if "image_guidance" in typed and not plan.request.edits:
        messages.append(f"{flag_of('image_guidance')} is not needed: this model was not trained to edit images")
    return tuple(PlanWarning(code=CODE, message=message) for message in messages)


def _reason(choice: str, plan: Plan) -> str:
    if plan.hardware.kind == "cpu":
        return "nothing runs on a GPU here; --max-ram limits memory"
    if plan.setup.placement == choice:
        return f"the plan does that already (placement={choice})"
    if legal(replace(plan.setup, placement=choice), plan.hardware, plan.model) is not None:
        return "the plan uses the fastest setup that fits"
    return f"the plan uses the fastest setup that fits; to force it: --pin placement={choice}"
