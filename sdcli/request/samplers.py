"""The samplers: what each is called here and elsewhere, which diffusers scheduler it is, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdcli import schema
from sdcli.errors import Usage
from sdcli.near import near_text, nearest
from sdcli.schema import renamed, transient
from sdcli.terminal import quoted, show

Calls = Literal["n", "2n-1", "n+1"]

_PLAIN: Mapping[str, Any] = {"use_karras_sigmas": False}
_KARRAS: Mapping[str, Any] = {"use_karras_sigmas": True}
_2M: Mapping[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_2M_SDE: Mapping[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampler. `options` go to the scheduler on top of the model's own scheduler config.

    Beyond `most_steps` diffusers runs out of training timesteps or repeats one and returns NaN.
    """

    name: str
    aliases: tuple[str, ...]
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: Calls = renamed("unet_calls", default="n")
    stochastic: bool = False
    zero_snr: bool = False
    most_steps: int = 999
    edm: bool = False  # for models trained with EDM's noise, and only these
    a1111: tuple[str, str] = transient()  # sampler and schedule type as A1111 writes them

    def unet_calls(self, steps: int, *, followed: bool = False) -> int:
        """How often the UNet is called for `steps` steps (twice that for guidance in turn); `followed`: by more, so
        that the last of all, which takes a single call, is not among them."""
        if self.calls == "2n-1":
            return 2 * steps - (0 if followed else 1)
        if self.calls == "n+1":
            return steps + 1 if steps > 1 else 1
        return steps


@dataclass(frozen=True, kw_only=True)
class Samplers:
    """`unet_calls` says how often the UNet is called for n steps."""

    schema: str = "sdcli.samplers/1"
    samplers: tuple[Sampler, ...]


SAMPLERS: tuple[Sampler, ...] = (
    Sampler(
        name="DDIM", aliases=("ddim", "k_ddim", "DDIMScheduler"), scheduler="DDIMScheduler",
        # A model file without a scheduler would inherit diffusers' default, which clips latents to [-1, 1].
        options={"clip_sample": False}, zero_snr=True, a1111=("DDIM", "Automatic"),
    ),
    Sampler(
        name="DDPM", aliases=("ddpm", "DDPMScheduler"), scheduler="DDPMScheduler",
        options={"clip_sample": False}, stochastic=True, zero_snr=True, a1111=("DDPM", "Automatic"),
    ),
    Sampler(
        name="Euler", aliases=("euler", "k_euler", "EulerDiscreteScheduler"), scheduler="EulerDiscreteScheduler",
        options=_PLAIN, zero_snr=True, a1111=("Euler", "Uniform"),
    ),
    Sampler(
        name="Euler a",
        aliases=("euler_a", "euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        scheduler="EulerAncestralDiscreteScheduler", stochastic=True, zero_snr=True, a1111=("Euler a", "Uniform"),
    ),
    Sampler(
        name="DPM++ 2M", aliases=("dpmpp_2m", "k_dpmpp_2m", "dpmsolver++", "DPMSolverMultistepScheduler"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M, **_PLAIN}, zero_snr=True, most_steps=998,
        a1111=("DPM++ 2M", "Uniform"),
    ),
    Sampler(
        name="DPM++ 2M Karras", aliases=("dpmpp_2m_karras", "dpmpp_2m_k", "k_dpmpp_2m_ka", "k_dpmpp_2m_karras"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M, **_KARRAS}, a1111=("DPM++ 2M", "Karras"),
    ),
    Sampler(
        name="DPM++ 2M SDE", aliases=("dpmpp_2m_sde", "k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M_SDE, **_PLAIN}, stochastic=True, zero_snr=True,
        most_steps=998, a1111=("DPM++ 2M SDE", "Uniform"),
    ),
    Sampler(
        name="DPM++ 2M SDE Karras",
        aliases=("dpmpp_2m_sde_karras", "dpmpp_2m_sde_k", "k_dpmpp_2m_sde_ka", "k_dpmpp_2m_sde_karras"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M_SDE, **_KARRAS}, stochastic=True,
        a1111=("DPM++ 2M SDE", "Karras"),
    ),
    Sampler(
        name="DPM++ singlestep",
        aliases=("dpmpp_singlestep", "dpmpp_2s", "dpm++_2s", "DPMSolverSinglestepScheduler"),
        scheduler="DPMSolverSinglestepScheduler",
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, **_PLAIN}, a1111=("DPM++ singlestep", "Automatic"),
    ),
    Sampler(
        name="UniPC", aliases=("unipc", "uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"),
        scheduler="UniPCMultistepScheduler", options=_PLAIN, zero_snr=True, most_steps=750,
        a1111=("UniPC", "Automatic"),
    ),
    Sampler(
        name="DEIS", aliases=("deis", "DEISMultistepScheduler"), scheduler="DEISMultistepScheduler", options=_PLAIN,
        most_steps=750, a1111=("DEIS", "Automatic"),
    ),
    Sampler(
        name="Heun", aliases=("heun", "k_heun", "HeunDiscreteScheduler"), scheduler="HeunDiscreteScheduler",
        options=_PLAIN, calls="2n-1", a1111=("Heun", "Uniform"),
    ),
    Sampler(
        name="DPM2", aliases=("dpm_2", "kdpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"),
        scheduler="KDPM2DiscreteScheduler", options=_PLAIN, calls="2n-1", a1111=("DPM2", "Uniform"),
    ),
    Sampler(
        name="DPM2 a",
        aliases=("dpm_2_a", "dpm_2_ancestral", "kdpm_2_a", "k_dpm_2_a", "k_dpm_2_ancestral",
                 "KDPM2AncestralDiscreteScheduler"),
        scheduler="KDPM2AncestralDiscreteScheduler", options=_PLAIN, calls="2n-1", stochastic=True,
        a1111=("DPM2 a", "Uniform"),
    ),
    Sampler(
        name="LCM", aliases=("lcm", "LCMScheduler"), scheduler="LCMScheduler", stochastic=True, zero_snr=True,
        most_steps=50, a1111=("LCM", "Automatic"),
    ),
    Sampler(
        name="TCD", aliases=("tcd", "TCDScheduler"), scheduler="TCDScheduler", stochastic=True, zero_snr=True,
        most_steps=50, a1111=("TCD", "Automatic"),
    ),
    Sampler(
        name="PNDM", aliases=("pndm", "plms", "k_plms", "PNDMScheduler"), scheduler="PNDMScheduler",
        # Without it the first steps are Runge-Kutta ones: 13 calls for 4 steps, and older configs leave it out.
        options={"skip_prk_steps": True}, calls="n+1", a1111=("PLMS", "Automatic"),
    ),
    Sampler(
        name="SA-Solver", aliases=("sa_solver", "sasolver", "SASolverScheduler"), scheduler="SASolverScheduler",
        options=_PLAIN, stochastic=True, most_steps=750, a1111=("SA-Solver", "Automatic"),
    ),
)  # fmt: skip

# For models trained with EDM's noise: none of the others draws with these, and these with no other.
EDM: tuple[Sampler, ...] = (
    Sampler(
        name="EDM DPM++ 2M", aliases=("edm_dpmpp_2m", "EDMDPMSolverMultistepScheduler"), edm=True,
        scheduler="EDMDPMSolverMultistepScheduler", options=_2M, a1111=("EDM DPM++ 2M", "Automatic"),
    ),
    Sampler(
        name="EDM Euler", aliases=("edm_euler", "EDMEulerScheduler"), edm=True, scheduler="EDMEulerScheduler",
        a1111=("EDM Euler", "Automatic"),
    ),
)  # fmt: skip
EVERY = (*SAMPLERS, *EDM)

ZERO_SNR: tuple[str, ...] = tuple(sampler.name for sampler in SAMPLERS if sampler.zero_snr)


@functools.lru_cache(64)
def _key(name: str) -> str:
    """The name without what varies: capitals, spaces, underscores, hyphens, and ++ for pp."""
    spelled = name.casefold().replace("++", "pp")
    return "".join(character for character in spelled if character not in " _-\t")


@functools.cache
def _by_key() -> Mapping[str, Sampler]:
    table: dict[str, Sampler] = {}
    for sampler in EVERY:
        for name in (sampler.name, *sampler.aliases, sampler.scheduler.removesuffix("Scheduler")):
            table.setdefault(_key(name), sampler)
    return table


def find(name: str) -> Sampler:
    """The sampler of that name or alias, in any spelling; Usage with the nearest names if there is none."""
    sampler = _by_key().get(_key(name)) if len(name) <= 80 else None
    if sampler is not None:
        return sampler
    close = tuple(dict.fromkeys(_by_key()[key].name for key in nearest(_key(name), _by_key(), 4)))
    raise Usage(
        f'no sampler "{show(name, 60)}"{near_text(close)}',
        hint=f"--sampler {quoted(close[0])}" if close else "sdcli samplers",
        field="sampler",
        near=list(close),
    )


def to_json() -> Any:
    return schema.to_json(Samplers(samplers=EVERY))


def check_steps(sampler: Sampler, steps: int) -> None:
    """Refuse, before anything is loaded, a number of steps that diffusers would fail at or return NaN for."""
    if not 1 <= steps <= sampler.most_steps:
        raise Usage(
            f"{sampler.name} takes 1 to {sampler.most_steps} steps, not {steps}",
            hint=f"--steps {min(max(steps, 1), sampler.most_steps)}",
            field="steps",
        )


def check_zero_snr(sampler: Sampler, zero_snr: bool) -> None:
    """Refuse a sampler that would not start from pure noise, for a model trained to (zero terminal SNR)."""
    if zero_snr and not sampler.zero_snr:
        raise Usage(
            f"{sampler.name} does not support models trained with zero terminal SNR, such as this one; "
            f"use one of: {', '.join(ZERO_SNR)}",
            hint="--sampler Euler",
            field="sampler",
            near=list(ZERO_SNR),
        )


def check_edm(sampler: Sampler, edm: bool) -> None:
    """Refuse a sampler for other noise than the model was trained with."""
    names = [each.name for each in EDM]
    if edm and not sampler.edm:
        raise Usage(
            f"{sampler.name} does not support models trained with EDM's noise, such as this one; use one of: "
            f"{', '.join(names)}",
            hint=f"--sampler {quoted(names[0])}",
            field="sampler",
            near=names,
        )
    if sampler.edm and not edm:
        raise Usage(
            f"{sampler.name} is for models trained with EDM's noise, such as Playground v2.5, and this one was not",
            hint="--sampler Euler",
            field="sampler",
        )


def default_for(usual: str, zero_snr: bool) -> str:
    """The usual sampler of a family, or its nearest relative for a model trained to zero terminal SNR."""
    sampler = find(usual)
    if sampler.zero_snr or not zero_snr:
        return sampler.name
    plain = {**sampler.options, **_PLAIN}
    relatives = (s for s in SAMPLERS if s.zero_snr and s.scheduler == sampler.scheduler and s.options == plain)
    return next(relatives, find("Euler")).name


# A1111's "Automatic" is the sampler's own schedule; for these it is not the plain one.
_A1111_AUTOMATIC = {"dpmpp2m": "karras", "dpm2": "karras", "dpm2a": "karras", "dpmpp2msde": "exponential"}
_A1111_PLAIN = frozenset({"", "uniform", "normal", "default"})


def from_a1111(name: str, schedule: str | None = None) -> Sampler | None:
    """The sampler behind A1111's pair, or behind the one name older files hold; None if it is not offered here.

    Without a schedule type (before A1111 1.9) the name has both: "DPM++ 2M Karras", and "DPM++ 2M" is plain.
    """
    key, kind = _key(name), _key(schedule or "")
    if len(key) > 80 or len(kind) > 40:
        return None
    if kind == "automatic":
        kind = _A1111_AUTOMATIC.get(key, "")
    if kind in _A1111_PLAIN or (kind == "ddim" and key == "ddim"):
        return _by_key().get(key)
    if kind == "karras" and key.endswith("karras"):
        return _by_key().get(key)
    return _by_key().get(key + kind)
