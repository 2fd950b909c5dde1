"""The loop can restart anywhere: after a failed UNet call, after a failed scheduler step, with every sampler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdcli.draw import denoise, schedulers
from sdcli.draw.denoise import Conditioning, Guidance, LoopState
from sdcli.models.resolve import at as model_at
from sdcli.request.samplers import SAMPLERS

STEPS = 6


class OutOfRoomError(Exception):
    pass


def small_unet(sample: Tensor, timestep: Tensor, *, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
    """Smooth in all its inputs, so that any lost state shows; stands in for a network in 18 × 6 × 4 runs."""
    wave = torch.sin(sample.float() * 0.7 + timestep.float() * 1e-3) + encoder_hidden_states.mean() * 0.1
    return (wave.to(sample.dtype),)


def failing(work: Callable[..., Any], call: int) -> Callable[..., Any]:
    """`work`, but its Nth call changes its state and then loses the result: the worst moment to fail."""
    count = 0

    @functools.wraps(work)
    def once(*args: Any, **given: Any) -> Any:
        nonlocal count
        count += 1
        result = work(*args, **given)
        if count == call:
            raise OutOfRoomError
        return result

    return once


def generators() -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]


def start(scheduler: Any, noise: list[torch.Generator]) -> LoopState:
    scheduler.set_timesteps(STEPS)
    return denoise.begin(scheduler, noise, shape=(4, 8, 8), dtype=torch.float32, device="cpu", batch=5)


@pytest.fixture(scope="module")
def config(tiny_folders: dict[str, Any]) -> dict[str, Any]:
    return dict(model_at(tiny_folders["sd15"]).scheduler)


CONDITIONING = Conditioning(
    guidance=Guidance(scale=5.0), rows={"encoder_hidden_states": torch.arange(4.0).view(4, 1, 1)}
)


@pytest.mark.parametrize("where", ["unet", "scheduler"])
@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
def test_restarted_where_it_failed_the_image_is_the_same(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, sampler: str, where: str
) -> None:
    scheduler, noise = schedulers.make(sampler, config), generators()
    *_, expected = denoise.denoise(small_unet, scheduler, CONDITIONING, start(scheduler, noise), noise)
    for call in {1, 2, expected.step // 2, expected.step}:
        scheduler, noise = schedulers.make(sampler, config), generators()
        at = start(scheduler, noise)
        unet = failing(small_unet, call) if where == "unet" else small_unet
        with monkeypatch.context() as patch:
            if where == "scheduler":
                patch.setattr(type(scheduler), "step", failing(type(scheduler).step, call))
            with pytest.raises(OutOfRoomError):
                for loop in denoise.denoise(unet, scheduler, CONDITIONING, at, noise):
                    at = loop
        assert (at.step, at.batch) == (call - 1, 5)
        other, fresh = schedulers.make(sampler, config), generators()  # another object, as after a reload
        *_, last = denoise.denoise(small_unet, other, CONDITIONING, at, fresh)
        assert torch.equal(last.latents, expected.latents), call


def test_a_loop_state_can_be_used_twice(config: dict[str, Any]) -> None:
    scheduler, noise = schedulers.make("DPM++ 2M SDE", config), generators()
    every = list(denoise.denoise(small_unet, scheduler, CONDITIONING, start(scheduler, noise), noise))
    for _ in range(2):
        *_, last = denoise.denoise(small_unet, scheduler, CONDITIONING, every[2], noise)
        assert torch.equal(last.latents, every[-1].latents)


def test_noise_comes_from_each_images_own_seed_in_fp32_whatever_the_dtype(config: dict[str, Any]) -> None:
    scheduler = schedulers.make("DDIM", config)
    scheduler.set_timesteps(4)
    drawn = {}
    for dtype in (torch.float32, torch.bfloat16):
        drawn[dtype] = denoise.begin(scheduler, generators(), shape=(4, 9, 9), dtype=dtype, device="cpu").latents
    for place, seed in enumerate((1, 2)):
        alone = torch.randn((1, 4, 9, 9), generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(drawn[torch.float32][place : place + 1], alone)
        assert torch.equal(drawn[torch.bfloat16][place : place + 1], alone.to(torch.bfloat16))


@pytest.mark.parametrize("sides", [1, 2, 3])
@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_however_rows_are_grouped_every_row_comes_once_and_in_its_place(
    config: dict[str, Any], sides: int, in_turn: bool, alone: bool
) -> None:
    images = 3
    rows = images * sides
    seen: list[int] = []

    def unet(sample: Tensor, timestep: Tensor, *, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        seen.append(len(sample))
        return (sample + encoder_hidden_states.view(-1, 1, 1, 1),)

    def drawn(groups: tuple[Tensor, ...]) -> Tensor:
        seen.clear()
        scheduler, noise = schedulers.make("DDIM", config), [torch.Generator().manual_seed(n) for n in range(images)]
        conditioning = Conditioning(
            guidance=Guidance(scale=2.0, sides=sides, image=1.5),
            rows={"encoder_hidden_states": torch.arange(float(rows)).view(-1, 1, 1)}, groups=groups,
        )  # fmt: skip
        *_, last = denoise.denoise(unet, scheduler, conditioning, start(scheduler, noise), noise)
        return last.latents

    together = drawn(())
    assert seen == [rows] * STEPS
    assert torch.equal(drawn(denoise.groups(images, sides, in_turn=in_turn, alone=alone)), together)
    size = (1 if in_turn else sides) if alone else (images if in_turn else rows)
    assert set(seen) == {min(size, rows)} and sum(seen) == rows * STEPS


def test_images_with_texts_of_other_lengths_are_in_other_calls() -> None:
    def rows(**given: Any) -> list[list[int]]:
        return [group.tolist() for group in denoise.groups(3, 2, lengths=(1, 3, 1), **given)]

    assert rows() == [[0, 2, 3, 5], [1, 4]]
    assert rows(in_turn=True) == [[0, 2], [3, 5], [1], [4]]
    assert rows(alone=True) == [[0, 3], [1, 4], [2, 5]]
