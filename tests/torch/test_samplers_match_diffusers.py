"""The table of samplers says what diffusers really does: classes, options, UNet calls, zero SNR."""

from typing import Any

import pytest

from sdcli import data
from sdcli.request.samplers import SAMPLERS, Sampler


def scheduler(sampler: Sampler, family: str, **more: Any) -> Any:
    import diffusers

    config = {**data.component_config(family, "scheduler"), **more}
    return getattr(diffusers, sampler.scheduler).from_config(config, **sampler.options)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_the_unet_is_called_as_often_as_the_table_says(sampler: Sampler, family: str) -> None:
    for steps in (5, 12, 20, 25, 50):
        made = scheduler(sampler, family)
        made.set_timesteps(steps)
        assert len(made.timesteps) == sampler.unet_calls(steps)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_the_options_are_ones_the_scheduler_knows(sampler: Sampler) -> None:
    made = scheduler(sampler, "sd15")
    for name, value in sampler.options.items():
        assert made.config[name] == value


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_few_steps_run_through(sampler: Sampler, family: str) -> None:
    import torch

    for steps in (1, 2, 4):
        made = scheduler(sampler, family)
        made.set_timesteps(steps)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * made.init_noise_sigma
        for timestep in made.timesteps:
            scaled = made.scale_model_input(latents, timestep)
            latents = made.step(scaled * 0.1, timestep, latents, return_dict=False)[0]
        assert torch.isfinite(latents).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_zero_snr_is_claimed_only_where_the_first_step_really_is_pure_noise(sampler: Sampler) -> None:
    made = scheduler(
        sampler, "sd15", rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    made.set_timesteps(20)
    if hasattr(made, "sigmas") and len(made.sigmas) == 21:
        highest = float(made.sigmas[0])
        honours = highest > 1000
    else:
        honours = float(made.alphas_cumprod[int(made.timesteps[0])]) < 1e-6
    if sampler.zero_snr:
        assert honours
