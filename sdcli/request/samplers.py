"""The samplers: what each is called here and elsewhere, which diffusers scheduler it is, and what it costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sdcli import schema
from sdcli.errors import Usage
from sdcli.near import near_text, nearest
from sdcli.schema import renamed, transient
from sdcli.terminal import quoted, show

TRAINING_STEPS = 1000  # of every Stable Diffusion

Calls = Literal["n", "2n-1", "n+1"]

_PLAIN: Mapping[str, Any] = {"use_karras_sigmas": False}
_KARRAS: Mapping[str, Any] = {"use_karras_sigmas": True}
_2M: Mapping[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_2M_SDE: Mapping[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_3M: Mapping[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 3}
_3M_SDE: Mapping[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}

# Schedules that one can choose apart from the sampler: A1111's names, and diffusers' options for them (its own table).
# By sigmas they run over all the noise there is, as elsewhere: with the model's own spacing many schedulers would not.
UNIFORM = "Uniform"  # the sampler as it is
_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    UNIFORM: {},
    "Karras": {"use_karras_sigmas": True, "timestep_spacing": "linspace"},
    "Exponential": {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
}
SCHEDULES = tuple(_SCHEDULES)
_TRAILING = ("SGM Uniform", "Simple")
_ALL = SCHEDULES[1:]


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
    schedules: tuple[str, ...] = ()  # that it can be told to take
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
        options={"clip_sample": False}, zero_snr=True, schedules=_TRAILING, a1111=("DDIM", "Automatic"),
    ),
    Sampler(
        name="DDPM", aliases=("ddpm", "DDPMScheduler"), scheduler="DDPMScheduler",
        options={"clip_sample": False}, stochastic=True, zero_snr=True, schedules=_TRAILING,
        a1111=("DDPM", "Automatic"),
    ),
    Sampler(
        name="Euler", aliases=("euler", "k_euler", "EulerDiscreteScheduler"), scheduler="EulerDiscreteScheduler",
        options=_PLAIN, zero_snr=True, schedules=_ALL, a1111=("Euler", "Uniform"),
    ),
    Sampler(
        name="Euler a",
        aliases=("euler_a", "euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        scheduler="EulerAncestralDiscreteScheduler", stochastic=True, zero_snr=True, schedules=_TRAILING,
        a1111=("Euler a", "Uniform"),
    ),
    Sampler(
        name="DPM++ 2M", aliases=("dpmpp_2m", "k_dpmpp_2m", "dpmsolver++", "DPMSolverMultistepScheduler"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M, **_PLAIN}, zero_snr=True, most_steps=998,
        schedules=_ALL, a1111=("DPM++ 2M", "Uniform"),
    ),
    Sampler(
        name="DPM++ 2M Karras", aliases=("dpmpp_2m_karras", "dpmpp_2m_k", "k_dpmpp_2m_ka", "k_dpmpp_2m_karras"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M, **_KARRAS}, a1111=("DPM++ 2M", "Karras"),
    ),
    Sampler(
        name="DPM++ 2M SDE", aliases=("dpmpp_2m_sde", "k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
        scheduler="DPMSolverMultistepScheduler", options={**_2M_SDE, **_PLAIN}, stochastic=True, zero_snr=True,
        most_steps=998, schedules=_ALL, a1111=("DPM++ 2M SDE", "Uniform"),
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
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, **_PLAIN}, schedules=("Karras",),
        a1111=("DPM++ singlestep", "Automatic"),
    ),
    Sampler(
        name="DPM++ 3M", aliases=("dpmpp_3m",), scheduler="DPMSolverMultistepScheduler", options={**_3M, **_PLAIN},
        zero_snr=True, most_steps=750, schedules=_ALL, a1111=("DPM++ 3M", "Uniform"),
    ),
    Sampler(
        name="DPM++ 3M SDE", aliases=("dpmpp_3m_sde", "k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
        scheduler="DPMSolverMultistepScheduler", options={**_3M_SDE, **_PLAIN}, stochastic=True, zero_snr=True,
        most_steps=750, schedules=_ALL, a1111=("DPM++ 3M SDE", "Uniform"),
    ),
    Sampler(
        name="DPM++ singlestep SDE", aliases=("dpmpp_singlestep_sde",), scheduler="DPMSolverSinglestepScheduler",
        options={**_2M_SDE, **_PLAIN}, stochastic=True, schedules=("Karras",),
        a1111=("DPM++ singlestep SDE", "Automatic"),
    ),
    Sampler(
        name="UniPC", aliases=("unipc", "uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"),
        scheduler="UniPCMultistepScheduler", options=_PLAIN, zero_snr=True, most_steps=750,
        schedules=_ALL, a1111=("UniPC", "Automatic"),
    ),
    Sampler(
        name="DEIS", aliases=("deis", "DEISMultistepScheduler"), scheduler="DEISMultistepScheduler", options=_PLAIN,
        most_steps=750, schedules=_ALL, a1111=("DEIS", "Automatic"),
    ),
    Sampler(
        name="Heun", aliases=("heun", "k_heun", "HeunDiscreteScheduler"), scheduler="HeunDiscreteScheduler",
        options=_PLAIN, calls="2n-1", schedules=_ALL, a1111=("Heun", "Uniform"),
    ),
    Sampler(
        name="DPM2", aliases=("dpm_2", "kdpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"),
        scheduler="KDPM2DiscreteScheduler", options=_PLAIN, calls="2n-1", schedules=_ALL, a1111=("DPM2", "Uniform"),
    ),
    Sampler(
        name="DPM2 a",
        aliases=("dpm_2_a", "dpm_2_ancestral", "kdpm_2_a", "k_dpm_2_a", "k_dpm_2_ancestral",
                 "KDPM2AncestralDiscreteScheduler"),
        scheduler="KDPM2AncestralDiscreteScheduler", options=_PLAIN, calls="2n-1", stochastic=True,
        schedules=_ALL, a1111=("DPM2 a", "Uniform"),
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
        options=_PLAIN, stochastic=True, most_steps=750, schedules=_ALL, a1111=("SA-Solver", "Automatic"),
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

# What other programs offer, and why it is not here; then what comes closest.
_NOT_OFFERED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "DPM++ SDE": (
        "diffusers draws its noise from one sequence for all images, whatever their seeds",
        ("DPM++ singlestep SDE", "DPM++ 2M SDE", "DPM++ 3M SDE"),
    ),
    "iPNDM": ("diffusers' has noise levels of its own, that no Stable Diffusion was trained with", ("PNDM", "DEIS")),
    "LMS": ("diffusers' needs scipy, which sdcli does without", ("DPM++ 2M", "DEIS")),
    "DPM++ 2S a": ("diffusers has none", ("DPM++ singlestep SDE", "DPM2 a")),
    "DPM fast": ("diffusers has none", ("DPM++ singlestep",)),
    "DPM adaptive": ("diffusers has none", ("DPM++ 2M", "UniPC")),
    "Restart": ("diffusers has none", ("Heun", "SA-Solver")),
}
_ALSO_NOT = {
    "dpmppsde": "DPM++ SDE", "dpmsolversde": "DPM++ SDE", "kdpmppsde": "DPM++ SDE", "dpmppsdegpu": "DPM++ SDE",
    "klms": "LMS", "lmsdiscrete": "LMS", "dpmpp2sa": "DPM++ 2S a", "dpmpp2sancestral": "DPM++ 2S a",
}  # fmt: skip
_SCHEDULES_NOT_OFFERED: Mapping[str, str] = {
    "Beta": "diffusers' repeats timesteps from some 50 steps on, and needs scipy",
    "Polyexponential": "diffusers has none",
    "KL Optimal": "diffusers has none",
    "Align Your Steps": "diffusers has none",
    "DDIM": "with diffusers it is the sampler DDIM's own",
}

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


@functools.cache
def _by_schedule() -> Mapping[str, str]:
    return {_key(name): name for name in SCHEDULES} | {"normal": UNIFORM, "default": UNIFORM, "discrete": UNIFORM}


@functools.lru_cache(maxsize=256)
def known(name: str) -> Sampler | None:
    """The sampler of that name or alias, in any spelling, which may end with a schedule: Euler Karras."""
    key = _key(name) if len(name) <= 80 else ""
    if key in _by_key():
        return _by_key()[key]
    for ending, schedule in _by_schedule().items():
        sampler = _by_key().get(key.removesuffix(ending)) if key.endswith(ending) else None
        if sampler is not None and schedule in (UNIFORM, *sampler.schedules):
            return scheduled(sampler, schedule)
    return None


def pairs() -> Iterator[Sampler]:
    """Every sampler with every schedule that it can be told to take, but for those with a name of their own."""
    for sampler in SAMPLERS:
        for schedule in sampler.schedules:
            if _key(f"{sampler.name} {schedule}") not in _by_key():
                yield scheduled(sampler, schedule)


def base(sampler: Sampler) -> Sampler:
    """Without the schedule that its name may end with."""
    return _by_key()[_key(sampler.a1111[0])]


def scheduled(sampler: Sampler, schedule: str) -> Sampler:
    """The same with another schedule; Usage where diffusers has none for it."""
    plain = base(sampler)
    if schedule == UNIFORM:
        return plain
    if schedule not in plain.schedules:
        able = tuple(other.name for other in SAMPLERS if schedule in other.schedules)
        own = f"; it takes {', '.join((UNIFORM, *plain.schedules))}" if plain.schedules else "; it has its own"
        raise Usage(
            f"{plain.name} does not take the schedule {schedule}{own}",
            hint=f"--sampler {quoted(able[0])}   (or {', '.join(able[1:4])} …)",
            field="sampler",
            near=list(able),
        )
    name = f"{plain.name} {schedule}"
    if _key(name) in _by_key():
        return _by_key()[_key(name)]
    spaced = "Simple" in plain.schedules  # else diffusers' knows no spacing
    options = {key: value for key, value in _SCHEDULES[schedule].items() if spaced or key != "timestep_spacing"}
    return replace(
        plain, name=name, aliases=(), options={**plain.options, **options}, schedules=(),
        zero_snr=plain.zero_snr and schedule != "Karras",
        most_steps=min(plain.most_steps, 750 if schedule in _TRAILING else 998),
        a1111=(plain.a1111[0], schedule),
    )  # fmt: skip


def names_schedule(name: str) -> bool:
    """Whether the sampler's name has one in it: DPM++ 2M Karras."""
    return base(find(name)).name != find(name).name


def find_schedule(name: str) -> str:
    """A1111's name of the schedule, in any spelling; automatic is what A1111 takes with the sampler."""
    key = _key(name) if len(name) <= 80 else ""
    if key == "automatic":
        return AUTOMATIC
    if key in _by_schedule():
        return _by_schedule()[key]
    told = next((why for other, why in _SCHEDULES_NOT_OFFERED.items() if _key(other) in (key, f"{key}schedule")), None)
    sampler = known(name)
    if told is None and sampler is not None:
        raise Usage(
            f"--scheduler {show(name, 60)}: that is a sampler; the schedules are {', '.join(SCHEDULES)}",
            hint=f"--sampler {quoted(sampler.name)}",
            field="scheduler",
        )
    close = nearest(name.casefold(), [known.casefold() for known in SCHEDULES], 1) or ("karras",)
    what = f"the schedule {show(name, 60)} is not offered: {told}" if told else f'no schedule "{show(name, 60)}"'
    raise Usage(
        f"{what}; the schedules are {', '.join(SCHEDULES)}",
        hint=f"--scheduler {quoted(close[0])}",
        field="scheduler",
        near=list(SCHEDULES),
    )


def with_schedule(name: str, schedule: str) -> Sampler:
    """What --scheduler makes of a sampler."""
    sampler = find(name)
    if schedule != AUTOMATIC:
        return scheduled(sampler, schedule)
    plain = base(sampler)
    own = _A1111_AUTOMATIC.get(_key(plain.name), "")
    return scheduled(plain, _by_schedule()[own]) if own else plain


def find(name: str) -> Sampler:
    """The sampler of that name or alias, in any spelling; Usage with the nearest names if there is none."""
    sampler = known(name)
    if sampler is not None:
        return sampler
    _refuse_not_offered(name)
    close = tuple(dict.fromkeys(_by_key()[key].name for key in nearest(_key(name), _by_key(), 4)))
    raise Usage(
        f'no sampler "{show(name, 60)}"{near_text(close)}',
        hint=f"--sampler {quoted(close[0])}" if close else "sdcli samplers",
        field="sampler",
        near=list(close),
    )


def _refuse_not_offered(name: str) -> None:
    """A sampler of other programs, with the reason why not, and what comes closest."""
    key = _key(name).removesuffix("scheduler") if len(name) <= 80 else ""
    for ending in ("", *_by_schedule()):
        short = key.removesuffix(ending)
        meant = _ALSO_NOT.get(short) or next((other for other in _NOT_OFFERED if _key(other) == short), None)
        if meant is None:
            continue
        why, instead = _NOT_OFFERED[meant]
        raise Usage(
            f"the sampler {meant} is not offered: {why}; closest: {', '.join(instead)}",
            hint=f"--sampler {quoted(instead[0])}",
            field="sampler",
            near=list(instead),
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
    if sampler.options.get("timestep_spacing") == "trailing" and not _spread(steps):
        fitting = next(
            other for more in range(1, TRAINING_STEPS) for other in (steps + more, steps - more) if _spread(other)
        )
        raise Usage(
            f"{sampler.name} of {steps} steps gets one more from diffusers, beyond the last; not of {fitting}",
            hint=f"--steps {fitting}",
            field="steps",
        )


def _spread(steps: int) -> bool:
    """Whether diffusers spreads as many timesteps as it should: it rounds 1000 / (1000 / 61) up to 62."""
    return steps > 0 and math.ceil(TRAINING_STEPS / (TRAINING_STEPS / steps)) == steps


def check_zero_snr(sampler: Sampler, zero_snr: bool) -> None:
    """Refuse a sampler that would not start from pure noise, for a model trained to (zero terminal SNR)."""
    if zero_snr and not sampler.zero_snr:
        raise Usage(
            f"{sampler.name} does not support models trained with zero terminal SNR, such as this one; "
            f"use one of: {', '.join(ZERO_SNR)}",
            hint="--sampler Euler" if base(sampler) == sampler else "--sampler Euler --scheduler uniform",
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
AUTOMATIC = "Automatic"
_A1111_AUTOMATIC = {
    "dpmpp2m": "karras", "dpm2": "karras", "dpm2a": "karras", "dpmpp2msde": "exponential", "dpmpp3msde": "exponential",
}  # fmt: skip
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
        return known(name)
    sampler, meant = known(name), _by_schedule().get(kind)
    if sampler is None or meant is None or meant not in (UNIFORM, *base(sampler).schedules):
        return None
    return scheduled(sampler, meant)
