"""The denoiser: a UNet2DConditionModel that reads the whole prompt in every block and learns v at zero terminal SNR."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.builtin_model.autoencoder import descend, keep
from scripts.builtin_model.captions import Captions, Meaning
from scripts.builtin_model.examples import Examples
from scripts.builtin_model.fields import COUNT, DRAWN, chosen, with_colours
from scripts.builtin_model.text_encoder import tokens

SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1,
}  # fmt: skip


REPEATED = 16  # times a code stands where a caption's states will
SHARES = {"plain": 0.58, "beside": 0.09, "count": 0.14, "hue": 0.11, "ground": 0.08}  # of what is said
COLOURS = 2.5  # how much a channel beside the drawing counts in the loss


@dataclass(frozen=True)
class Recipe:
    widths: tuple[int, ...] = (80, 160, 272)
    moment: int = 512  # width of what tells the time and the prompt
    layers: int = 1
    latent_channels: int = DRAWN + COUNT
    latent_size: int = 16
    text_width: int = 256
    steps: int = 75_000
    broad: int = 7500  # so long it is shown everything, then what it is to know
    read: int = 9000  # from this step on, it is shown captions; before, codes
    batch: int = 32
    rate: float = 1e-3
    falling: float = 0.25  # the last part of the steps, in which the rate falls to 0
    average: float = 0.9995
    silent: float = 0.08  # captions dropped, for guidance
    kept_every: int = 500
    compiled: bool = False  # a quarter sooner, where there is a C++ compiler


def new(recipe: Recipe) -> UNet2DConditionModel:
    levels = len(recipe.widths)
    return UNet2DConditionModel(
        sample_size=recipe.latent_size, in_channels=recipe.latent_channels, out_channels=recipe.latent_channels,
        block_out_channels=recipe.widths, layers_per_block=recipe.layers, norm_num_groups=16,
        down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
        mid_block_type="UNetMidBlock2D", cross_attention_dim=recipe.text_width, attention_head_dim=8,
        addition_embed_type="text", addition_embed_type_num_heads=8, time_embedding_dim=recipe.moment,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Captions in the states that the text encoder has for them."""

    captions: Captions
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    device: str

    @torch.no_grad()
    def states(self, meanings: Sequence[Meaning | None], random: np.random.Generator) -> Tensor:
        said = ["" if meaning is None else self.captions.any(meaning, random) for meaning in meanings]
        ids = tokens(self.tokenizer, said).to(self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            return self.encoder(ids).last_hidden_state


class Training:
    """Everything that moves, kept as one file."""

    def __init__(self, recipe: Recipe, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.model = new(recipe).to(device, memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.step = 0

    def load(self, path: Path, device: str) -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def keep(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(), "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step,
        }  # fmt: skip
        keep(state, path)

    @torch.no_grad()
    def average(self, share: float) -> None:
        share = min(share, (1 + self.step) / (10 + self.step))  # the first steps are forgotten soon
        for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - share)


def train(
    shown: Examples, reader: Reader | None, recipe: Recipe, kept: Path, seed: int, device: str,
    say: Callable[[str], None],
) -> UNet2DConditionModel:  # fmt: skip
    """Resumes from `kept`; returns the averaged weights. Without a reader it stops where captions begin."""
    training = Training(recipe, seed, device)
    if kept.exists():
        training.load(kept, device)
    model = torch.compile(training.model) if recipe.compiled else training.model
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    begun, started, losses = training.step, time.monotonic(), []
    for step in range(begun, recipe.steps if reader is not None else recipe.read):
        for group in training.optimizer.param_groups:
            group["lr"] = recipe.rate * _rate(step, recipe)
        # a step is the same whether or not the training was stopped before
        random = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        said = [shown.any(random, SHARES) for _ in range(recipe.batch)]
        latents = _latents(shown, said, random).to(device).contiguous(memory_format=torch.channels_last)
        heard = random.random(recipe.batch) >= recipe.silent
        if reader is None or step < recipe.read:
            codes = shown.codes([row for row, _ in said], [meaning for _, meaning in said])
            codes[torch.from_numpy(~heard)] = shown.basis.silence()
            states = codes[:, None].expand(-1, REPEATED, -1).to(device)
        else:
            told = [meaning if aloud else None for (_, meaning), aloud in zip(said, heard, strict=True)]
            states = reader.states(told, random)
        loss = _loss(model, states, latents, alphas, generator)
        descend(loss, training.optimizer, training.model.parameters())
        training.step = step + 1
        training.average(recipe.average)
        losses.append(loss.item())
        if training.step % 100 == 0:
            speed = (training.step - begun) / (time.monotonic() - started)
            say(f"denoiser {training.step}/{recipe.steps}  loss {np.mean(losses[-100:]):.4f}  {speed:.2f} steps/s")
        if training.step % recipe.kept_every == 0 or training.step in (recipe.read, recipe.steps):
            training.keep(kept)
    return training.averaged.eval()


def _latents(shown: Examples, said: Sequence[tuple[int, Meaning]], random: np.random.Generator) -> Tensor:
    """The things, where they are, and colours as said or by chance."""
    rows = [row for row, _ in said]
    colours = [chosen(random, meaning, shown.grey[row]) for row, meaning in said]
    drawn = torch.cat([shown.latents[rows], shown.mattes[rows][:, None]], dim=1).float()
    return with_colours(drawn, colours)


def _loss(
    model: Callable[..., Any], states: Tensor, latents: Tensor, alphas: Tensor, generator: torch.Generator
) -> Tensor:
    """The velocity's square error, at times spread evenly over the batch and a little more where noise is strong."""
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    times = (spread**0.7 * 1000).long().clamp(0, 999)[torch.randperm(count, generator=generator)].to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    alpha = alphas[times].sqrt()[:, None, None, None]
    sigma = (1 - alphas[times]).sqrt()[:, None, None, None]
    wanted = alpha * noise - sigma * latents
    with torch.autocast(latents.device.type, torch.bfloat16):
        given = model(alpha * latents + sigma * noise, times, states).sample
    far = (given.float() - wanted).square().mean((0, 2, 3))
    return far[:DRAWN].mean() + COLOURS * far[DRAWN:].mean()


def _rate(step: int, recipe: Recipe) -> float:
    """Up, along, and down at the end."""
    left = (recipe.steps - step) / max(1.0, recipe.falling * recipe.steps)
    return min(1.0, (step + 1) / 300, left)
