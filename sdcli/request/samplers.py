"""The samplers on offer: their names here and elsewhere, what they cost, and what diffusers calls them."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import Usage
from sdcli.terminal import show

DEFAULT = "DPM++ 2M Karras"


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """`options` go to the scheduler's from_config; `calls` is the number of UNet calls for n steps, as a formula."""

    name: str
    scheduler: str
    aliases: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: str = "n"
    stochastic: bool = False
    zero_snr: bool = False
    fewest: int = 1  # steps diffusers can make with it

    def unet_calls(self, steps: int) -> int:
        return {"n": steps, "n+1": steps + 1, "2n-1": 2 * steps - 1}[self.calls]


def _multistep(karras: bool = False, sde: bool = False) -> dict[str, Any]:
    return {"algorithm_type": "sde-dpmsolver++" if sde else "dpmsolver++", "use_karras_sigmas": karras}


SAMPLERS: tuple[Sampler, ...] = (
    Sampler(name="DDIM", scheduler="DDIMScheduler", aliases=("ddim",), zero_snr=True),
    Sampler(name="DDPM", scheduler="DDPMScheduler", aliases=("ddpm",), stochastic=True, zero_snr=True),
    Sampler(name="Euler", scheduler="EulerDiscreteScheduler", aliases=("k_euler",), zero_snr=True),
    Sampler(name="Euler a", scheduler="EulerAncestralDiscreteScheduler",
            aliases=("Euler Ancestral", "k_euler_a", "k_euler_ancestral"), stochastic=True, zero_snr=True),
    Sampler(name="DPM++ 2M", scheduler="DPMSolverMultistepScheduler", aliases=("dpmpp_2m", "k_dpmpp_2m"),
            options=_multistep(), zero_snr=True),
    Sampler(name="DPM++ 2M Karras", scheduler="DPMSolverMultistepScheduler",
            aliases=("dpmpp_2m_karras", "k_dpmpp_2m_ka"), options=_multistep(karras=True)),
    Sampler(name="DPM++ 2M SDE", scheduler="DPMSolverMultistepScheduler", aliases=("dpmpp_2m_sde", "k_dpmpp_2m_sde"),
            options=_multistep(sde=True), stochastic=True, zero_snr=True),
    Sampler(name="DPM++ 2M SDE Karras", scheduler="DPMSolverMultistepScheduler",
            aliases=("dpmpp_2m_sde_karras", "k_dpmpp_2m_sde_ka"), options=_multistep(karras=True, sde=True),
            stochastic=True),
    Sampler(name="DPM++ singlestep", scheduler="DPMSolverSinglestepScheduler",
            aliases=("DPM++ 2S", "dpmpp_2s", "dpm_single")),
    Sampler(name="UniPC", scheduler="UniPCMultistepScheduler", aliases=("uni_pc", "unipc"), zero_snr=True),
    Sampler(name="DEIS", scheduler="DEISMultistepScheduler", aliases=("deis",)),
    Sampler(name="Heun", scheduler="HeunDiscreteScheduler", aliases=("k_heun",), calls="2n-1"),
    Sampler(name="DPM2", scheduler="KDPM2DiscreteScheduler", aliases=("k_dpm_2", "dpm_2"), calls="2n-1"),
    Sampler(name="DPM2 a", scheduler="KDPM2AncestralDiscreteScheduler",
            aliases=("DPM2 Ancestral", "k_dpm_2_a", "dpm_2_ancestral"), calls="2n-1", stochastic=True),
    Sampler(name="LCM", scheduler="LCMScheduler", aliases=("lcm",), stochastic=True, zero_snr=True),
    Sampler(name="TCD", scheduler="TCDScheduler", aliases=("tcd",), stochastic=True, zero_snr=True),
    Sampler(name="PNDM", scheduler="PNDMScheduler", aliases=("PLMS", "pndm"), calls="n+1"),
    Sampler(name="SA-Solver", scheduler="SASolverScheduler", aliases=("sa_solver",), stochastic=True),
)  # fmt: skip


def _folded(name: str) -> str:
    """`k_euler_a`, `Euler A` and `euler-a` are one name; ++ and pp are one mark."""
    return re.sub(r"[\s_\-]+", "", name.casefold().replace("++", "pp"))


@functools.cache
def _by_name() -> dict[str, Sampler]:
    """Every spelling. A scheduler class shared by several samplers means the first, its plain form."""
    found: dict[str, Sampler] = {}
    for sampler in SAMPLERS:
        for name in (sampler.name, *sampler.aliases, sampler.scheduler, sampler.scheduler.removesuffix("Scheduler")):
            found.setdefault(_folded(name), sampler)
    return found


def find(name: str) -> Sampler:
    sampler = _by_name().get(_folded(name[:200]))
    if sampler is not None:
        return sampler
    near = difflib.get_close_matches(_folded(name[:200]), _by_name(), n=6, cutoff=0.5)
    names = list(dict.fromkeys(_by_name()[n].name for n in near))[:3]
    tail = f"; near: {', '.join(names)}" if names else ""
    raise Usage(f'no sampler "{show(name, 60)}"{tail}', hint="sdcli samplers")


def refuse_unable(sampler: Sampler, zero_snr: bool) -> None:
    """A model trained to zero terminal SNR is drawn wrongly, not badly, by a sampler that ignores it."""
    if zero_snr and not sampler.zero_snr:
        able = ", ".join(s.name for s in SAMPLERS if s.zero_snr)
        raise Usage(
            f"{sampler.name} does not honour this model's zero terminal SNR; these do: {able}",
            hint='sdcli generate "a cat" --sampler DDIM',
        )


def refuse_too_few(sampler: Sampler, steps: int) -> None:
    if steps < sampler.fewest:
        raise Usage(
            f"{sampler.name} needs at least {sampler.fewest} steps, not {steps}",
            hint=f'sdcli generate "a cat" --sampler "{sampler.name}" --steps {sampler.fewest}',
        )


# --- the pair A1111 writes since 1.9: the sampler, and the schedule type apart

_SCHEDULES = (" Karras", " Exponential")


def a1111_pair(name: str) -> tuple[str, str | None]:
    """`DPM++ 2M Karras` is written as the sampler `DPM++ 2M` with schedule type `Karras`."""
    for ending in _SCHEDULES:
        if name.endswith(ending):
            return name.removesuffix(ending), ending.strip()
    return name, None


def from_a1111(name: str, schedule: str | None) -> str:
    """Our name for A1111's pair, or the words as they stand where we offer no such sampler."""
    joined = f"{name} {schedule}" if schedule and schedule not in ("Automatic", "Normal", "Uniform") else name
    known = _by_name().get(_folded(joined[:200]))
    return known.name if known is not None else joined


def to_json() -> dict[str, Any]:
    return {
        "schema": "sdcli.samplers/1",
        "samplers": [
            {
                "name": s.name,
                "aliases": [*s.aliases, s.scheduler],
                "scheduler": s.scheduler,
                "options": dict(s.options),
                "unet_calls": s.calls,
                "stochastic": s.stochastic,
                "zero_snr": s.zero_snr,
            }
            for s in SAMPLERS
        ],
    }
