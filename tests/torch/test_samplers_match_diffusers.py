"""The table of samplers matches diffusers: classes, options, UNet calls, zero SNR."""

import inspect
from typing import Any

import pytest

from sdcli import data
from sdcli.request.samplers import SAMPLERS, Sampler, base, pairs


def scheduler(sampler: Sampler, family: str, **more: Any) -> Any:
    import diffusers

    config = {**data.component_config(family, "scheduler"), **more}
    return getattr(diffusers, sampler.scheduler).from_config(config, **sampler.options)


# A schedule is an option that many share: every day each is tried with two of them.
EVERY_DAY = ("Euler", "DPM++ 3M SDE")
PAIRS = [
    pytest.param(pair, id=pair.name, marks=[pytest.mark.proof] * (base(pair).name not in EVERY_DAY)) for pair in pairs()
]
NAMED = pytest.mark.parametrize("sampler", (*SAMPLERS, *PAIRS), ids=lambda sampler: sampler.name)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@NAMED
def test_the_unet_is_called_as_often_as_the_table_says(sampler: Sampler, family: str) -> None:
    made = scheduler(sampler, family)  # once: some take half a second to make
    for steps in (1, 2, 3, 4, 5, 8, 12, 20, 25, 30, 50, sampler.most_steps):
        made.set_timesteps(steps)
        assert len(made.timesteps) == sampler.unet_calls(steps)


@NAMED
def test_a_config_that_leaves_out_what_it_can_gives_the_same_calls(sampler: Sampler) -> None:
    import diffusers

    made = getattr(diffusers, sampler.scheduler).from_config({}, **sampler.options)
    made.set_timesteps(20)
    assert len(made.timesteps) == sampler.unet_calls(20)
    assert not made.config.get("clip_sample")


@NAMED
def test_the_options_are_ones_the_scheduler_knows(sampler: Sampler) -> None:
    made = scheduler(sampler, "sd15")
    for name, value in sampler.options.items():
        assert made.config[name] == value


def drawn(made: Any, steps: int, seed: int = 1) -> Any:
    """Latents after all steps of a UNet that predicts a tenth of what it sees."""
    import torch

    made.set_timesteps(steps)
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1)) * made.init_noise_sigma
    noise = {}
    if "generator" in inspect.signature(made.step).parameters:
        noise = {"generator": torch.Generator().manual_seed(seed)}
    for timestep in made.timesteps:
        scaled = made.scale_model_input(latents, timestep)
        latents = made.step(scaled * 0.1, timestep, latents, return_dict=False, **noise)[0]
    return latents


@NAMED
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_few_steps_run_through(sampler: Sampler, family: str) -> None:
    made = scheduler(sampler, family)
    for steps in (1, 2, 3, 4):
        assert drawn(made, steps).isfinite().all()


@NAMED
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_most_steps_it_takes_run_through(sampler: Sampler, spacing: str) -> None:
    assert drawn(scheduler(sampler, "sd15", timestep_spacing=spacing), sampler.most_steps).isfinite().all()


@NAMED
def test_it_is_stochastic_where_other_noise_on_the_way_gives_another_image(sampler: Sampler) -> None:
    made = scheduler(sampler, "sd15")
    one, other = (drawn(made, 8, seed) for seed in (1, 2))
    assert bool((one != other).any()) == sampler.stochastic


@NAMED
def test_zero_snr_is_claimed_where_all_steps_begin_at_pure_noise_and_are_spread(sampler: Sampler) -> None:
    made = scheduler(
        sampler, "sd15", rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    made.set_timesteps(20)
    first = int(made.timesteps[0])
    if hasattr(made, "sigmas") and len(made.sigmas) >= 20:
        pure = float(made.sigmas[0]) > 1000
    else:
        pure = float(made.alphas_cumprod[first]) < 1e-6
    crowded = sum(int(timestep) > 950 for timestep in made.timesteps) >= 10  # what Karras makes of so wide a range
    assert (pure and not crowded) == sampler.zero_snr
    if sampler.zero_snr:
        assert drawn(made, 20).isfinite().all()
