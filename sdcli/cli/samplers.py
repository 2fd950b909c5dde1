"""`sdcli samplers`: the samplers, what they cost and what other programs call them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sdcli.request.options import SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import folded, in_columns, say, tell, width


def command() -> Callable[..., None]:
    return make(_show, [o for o in SCREEN if o.field in ("json", "debug")], name="samplers",
                help="List the samplers, with the names other programs give them.")  # fmt: skip


def _show(typed: dict[str, Any]) -> None:
    from sdcli.cli.answer import print_json
    from sdcli.request import samplers

    if typed.get("json"):
        print_json(samplers.to_json())
        return
    widest = max(len(sampler.name) for sampler in samplers.EVERY)
    tell(f"{'sampler':<{widest}}  UNet calls  noise  zero SNR  also")
    room = widest + 33
    for sampler in samplers.EVERY:
        noise = "yes" if sampler.stochastic else "-"
        zero = "yes" if sampler.zero_snr else "-"
        also = ", ".join(sampler.aliases[:2])
        start = f"{sampler.name:<{widest}}  {sampler.calls:<10}  {noise:<5}  {zero:<8}"
        for line in in_columns(start, also, room, width(sys.stdout)):
            tell(line)
    legend = (
        "UNet calls: for n steps. noise: adds noise in every step, so the number of steps changes the image more. "
        "zero SNR: works with models trained to zero terminal SNR. EDM: for models trained with EDM's noise, such as "
        "Playground v2.5, and only these."
    )
    for line in (*folded(legend, width()), *folded(_schedules(), width())):
        say(line)


def _schedules() -> str:
    """What can follow a sampler's name, told by the samplers that take less than all."""
    from sdcli.request import samplers

    every = samplers.SCHEDULES[1:]
    taking: dict[tuple[str, ...], list[str]] = {}
    for sampler in samplers.EVERY:
        taking.setdefault(sampler.schedules, []).append(sampler.name)
    less = (
        f"{', '.join(names)}: {' and '.join(schedules) or 'none'}"
        for schedules, names in taking.items()
        if schedules != every
    )
    return f"schedules, by --scheduler or at the end of the name: {', '.join(every)}; of {'; of '.join(less)}"
