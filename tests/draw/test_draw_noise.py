"""Noise as an NVIDIA GPU draws it: the numbers are known, and every draw of an image comes from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from draw_samples import events_of, plan_for
from test_draw_denoise import CONDITIONING, small_unet
from torch import Tensor

from sdcli.draw import denoise, noise, schedulers
from sdcli.draw.encode_image import Posterior
from sdcli.draw.noise import normal_values
from sdcli.draw.start import EncodedStart, begun
from sdcli.events import Decoded
from sdcli.models.resolve import at as model_at

STEPS = 4
SHAPE = (4, 8, 8)


def test_the_generator_below_has_its_authors_numbers() -> None:
    """The known answers that come with Random123 for Philox 4x32-10."""
    known = {
        ((0, 0, 0, 0), 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ((0xFFFFFFFF,) * 4, 2**64 - 1): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822):
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }  # fmt: skip
    for (counter, key), expected in known.items():
        found = noise._philox(tuple(numpy.array([one], numpy.uint64) for one in counter), key)
        assert tuple(int(one[0]) for one in found) == expected


def test_it_is_what_torch_draws_on_a_gpu() -> None:
    """torch.randn(12, device="cuda") after torch.manual_seed(0)."""
    known = [
        -0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564, -0.62285122, -0.32838709,
        -1.07454231, -0.36314407, -1.67105067, 2.26550497,
    ]  # fmt: skip
    drawn = noise.normal((3, 4), noise.generator("nv", 0))
    assert drawn.dtype == torch.float32 and drawn.flatten().tolist() == pytest.approx(known, rel=2**-23)


def test_torch_on_the_cpu_looks_at_the_last_32_bits_of_a_seed_alone() -> None:
    drawn = [noise.normal((100,), noise.generator("cpu", seed)) for seed in (7, 5 * 2**32 + 7, 2**64 - 1, 2**32 - 1)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3]) and not torch.equal(drawn[0], drawn[2])


def test_its_values_are_normal_and_no_draw_resembles_another() -> None:
    count = 200_000
    rows = numpy.stack([normal_values(seed, before, count) for seed in (0, 1, 2**32 - 1) for before in (0, 1, 7)])
    error = 5 / math.sqrt(count)
    assert numpy.isfinite(rows).all()
    assert numpy.abs(rows.mean(1)).max() < error
    assert numpy.abs(rows.var(1) - 1).max() < error * math.sqrt(2)
    assert numpy.abs((rows**3).mean(1)).max() < error * math.sqrt(15)
    assert numpy.abs((rows**4).mean(1) - 3).max() < error * math.sqrt(96)
    assert numpy.abs(numpy.corrcoef(rows) - numpy.eye(len(rows))).max() < error
    assert numpy.abs((rows[:, :-1] * rows[:, 1:]).mean(1)).max() < error
    below = (rows < numpy.array([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None, None]).mean(2)
    expected = [(1 + math.erf(limit / math.sqrt(2))) / 2 for limit in (-2, -1, 0, 1, 2)]
    assert numpy.abs(below - numpy.array(expected)[:, None]).max() < error


def test_a_generator_continues_from_its_state_and_keeps_the_cpus_own_sequence() -> None:
    ours, plain = noise.generator("nv", 9), torch.Generator("cpu").manual_seed(9)
    first = noise.normal(SHAPE, ours)
    assert torch.equal(torch.randn(SHAPE, generator=ours), torch.randn(SHAPE, generator=plain))
    state = ours.get_state()
    following = noise.normal(SHAPE, ours), torch.randn(SHAPE, generator=ours)
    other = noise.generator("nv", 1)
    other.set_state(state)
    assert torch.equal(noise.normal(SHAPE, other), following[0])
    assert torch.equal(torch.randn(SHAPE, generator=other), following[1])
    assert not torch.equal(following[0], first)
    assert torch.equal(noise.normal(SHAPE, other.manual_seed(9)), first)


@pytest.fixture(scope="module")
def config(tiny_folders: dict[str, Any]) -> dict[str, Any]:
    return dict(model_at(tiny_folders["sd15"]).scheduler)


def latents(config: dict[str, Any], sampler: str, seeds: tuple[int, ...], restart_at: int | None = None) -> Tensor:
    scheduler, generators = schedulers.make(sampler, config), [noise.generator("nv", seed) for seed in seeds]
    scheduler.set_timesteps(STEPS)
    at = denoise.begin(scheduler, generators, shape=SHAPE, dtype=torch.float32, device="cpu")
    conditioning = denoise.replace(CONDITIONING, rows={"encoder_hidden_states": torch.ones(2 * len(seeds), 1, 1)})
    for state in denoise.denoise(small_unet, scheduler, conditioning, at, generators):
        if state.step == restart_at:  # as after a failure: a scheduler and generators that know nothing
            fresh = [noise.generator("nv", 0) for _ in seeds]
            *_, state = denoise.denoise(small_unet, schedulers.make(sampler, config), conditioning, state, fresh)
            return state.latents
    return state.latents


def by_the_numbers(
    config: dict[str, Any], sampler: str, seed: int, patch: pytest.MonkeyPatch, drawn: list[int]
) -> Tensor:
    """diffusers' scheduler alone, given the values of each draw in turn."""
    import diffusers.utils.torch_utils as drawing

    def values(*_: Any, **__: Any) -> Tensor:
        drawn.append(len(drawn))
        return torch.from_numpy(normal_values(seed, drawn[-1], math.prod(SHAPE))).reshape(1, *SHAPE)

    scheduler = schedulers.make(sampler, config)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    assert module.randn_tensor is drawing.randn_tensor
    patch.setattr(module, "randn_tensor", values)
    scheduler.set_timesteps(STEPS)
    sample = values() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        (side,) = small_unet(scaled, timestep, encoder_hidden_states=torch.ones(1, 1, 1), return_dict=False)
        sample = scheduler.step(side + 5.0 * (side - side), timestep, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("sampler", ["Euler a", "DPM2 a", "LCM", "DDPM", "DPM++ 2M SDE", "SA-Solver"])
def test_each_steps_noise_is_the_next_of_the_images_own_draws(
    config: dict[str, Any], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    with monkeypatch.context() as patch:
        expected = by_the_numbers(config, sampler, 5, patch, drawn)
    alone = latents(config, sampler, (5,))
    assert len(drawn) > 2 and torch.equal(alone, expected)
    together = latents(config, sampler, (4, 5))
    assert torch.equal(together[1:], alone) and not torch.equal(together[:1], alone)
    assert torch.equal(latents(config, sampler, (4, 5), restart_at=2), together)


def test_what_an_image_is_encoded_with_takes_none_of_the_gpus_draws() -> None:
    """The web UI draws that elsewhere too."""
    encoded = EncodedStart(Posterior(torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)), mask=torch.ones(1, 1, 8, 8))
    ours, plain = noise.generator("nv", 3), torch.Generator("cpu").manual_seed(3)
    about: dict[str, Any] = {"shape": SHAPE, "dtype": torch.float32, "sees_mask": False}
    from_gpu = begun([None], [encoded], [ours], {"scaling_factor": 1.0}, **about)
    from_cpu = begun([None], [encoded], [plain], {"scaling_factor": 1.0}, **about)
    first = torch.from_numpy(normal_values(3, 0, math.prod(SHAPE))).reshape(1, *SHAPE)
    assert torch.equal(from_gpu.noise, first) and not torch.equal(from_cpu.noise, first)
    assert from_gpu.latents is not None and from_cpu.latents is not None
    assert torch.equal(from_gpu.latents, from_cpu.latents)


def pixels(folder: Path, **asked: Any) -> list[bytes]:
    return [event.pixels for event in events_of(plan_for(folder, sampler="Euler a", steps=2, **asked), Decoded)]


def test_an_image_is_the_same_each_time_alone_and_in_a_batch_and_not_the_cpus(tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders["sd15"]
    (alone,), (cpu,) = pixels(folder, rng="nv"), pixels(folder)
    assert alone != cpu and pixels(folder, rng="nv") == [alone]
    together = pixels(folder, rng="nv", seeds=(6, 7), num_images=2, batch_size=2, batch_invariant=True)
    assert together[1] == alone != together[0]


def test_over_an_enlarged_first_pass_the_sequence_begins_anew(tiny_folders: dict[str, Path]) -> None:
    asked: dict[str, Any] = {"hires": 1.5, "hires_steps": 1, "hires_strength": 0.7}
    first, again, cpu = (pixels(tiny_folders["sd15"], rng=rng, **asked) for rng in ("nv", "nv", "cpu"))
    assert first == again != cpu
