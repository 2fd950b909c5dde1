"""The denoiser: a UNet2DConditionModel that reads the whole prompt at every block and learns v at zero terminal SNR."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.builtin_model.artwork import Artwork
from scripts.builtin_model.autoencoder import encoded, keep
from scripts.builtin_model.captions import Captions, Meaning
from scripts.builtin_model.pictures import GROUNDS, HUES, Look, any_look, picture
from scripts.builtin_model.text_encoder import tokens

SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    widths: tuple[int, ...] = (80, 144, 208)
    read: tuple[bool, ...] = (False, False, True)  # which levels attend to the prompt's words
    layers: int = 1
    latent_channels: int = 8
    latent_size: int = 16
    text_width: int = 256
    steps: int = 15_000
    batch: int = 16
    rate: float = 1e-3
    falling: float = 0.3  # the last part of the steps, in which the rate falls to 0
    average: float = 0.9995
    silent: float = 0.08  # captions dropped, for guidance
    kept_every: int = 1000
    looks: int = 8  # of each thing, beside the artwork as it is
    coloured: float = 0.0  # part of the pictures in another colour, and as many on a coloured ground


def new(recipe: Recipe) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if read else "DownBlock2D" for read in recipe.read)
    up = tuple("CrossAttnUpBlock2D" if read else "UpBlock2D" for read in reversed(recipe.read))
    return UNet2DConditionModel(
        sample_size=recipe.latent_size, in_channels=recipe.latent_channels, out_channels=recipe.latent_channels,
        block_out_channels=recipe.widths, down_block_types=down, up_block_types=up, layers_per_block=recipe.layers,
        cross_attention_dim=recipe.text_width, attention_head_dim=8, norm_num_groups=16,
        addition_embed_type="text", addition_embed_type_num_heads=8, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Latents of pictures, what each shows, and how often each is taken."""

    latents: Tensor
    meanings: list[Meaning]
    chances: np.ndarray[Any, Any]


def examples(artwork: Artwork, autoencoder: AutoencoderKL, recipe: Recipe, seed: int, device: str) -> Examples:
    random = np.random.default_rng(seed)
    pictures: list[np.ndarray[Any, Any]] = []
    meanings: list[Meaning] = []
    chances: list[float] = []

    def add(rgba: np.ndarray[Any, Any], look: Look, meaning: Meaning, chance: float) -> None:
        pictures.append(picture(rgba, look))
        meanings.append(meaning)
        chances.append(chance)

    for every in artwork.pictures.values():
        for thing, rgba in every.items():
            add(rgba, Look(), Meaning(thing), 0.4)
            add(rgba, Look(mirrored=True), Meaning(thing), 0.15)
            for _ in range(recipe.looks):
                add(rgba, any_look(random), Meaning(thing), 0.45 / recipe.looks)
            if recipe.coloured:
                for name, hue in HUES.items():
                    add(rgba, any_look(random, hue=hue), Meaning(thing, hue=name), recipe.coloured / len(HUES))
                for name, ground in GROUNDS.items():
                    if name != "white":
                        chance = recipe.coloured / (len(GROUNDS) - 1)
                        add(rgba, any_look(random, ground=ground), Meaning(thing, ground=name), chance)
    latents = encoded(autoencoder, np.stack(pictures), device)
    weights = np.array(chances)
    return Examples(latents, meanings, weights / weights.sum())


class Training:
    """Everything that moves, kept as one file."""

    def __init__(self, recipe: Recipe, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.model = new(recipe).to(device, memory_format=torch.channels_last)
        self.model.set_attn_processor(AttnProcessor())  # so few queries are faster in plain products, most of all back
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
    shown: Examples, captions: Captions, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, recipe: Recipe, kept: Path,
    seed: int, device: str, say: Callable[[str], None], look: Callable[[UNet2DConditionModel, int], None] | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    """Resumes from `kept`; returns the averaged weights. `look` is shown them now and then."""
    training = Training(recipe, seed, device)
    if kept.exists():
        training.load(kept, device)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    encoder = encoder.to(device).eval()
    begun, started, losses = training.step, time.monotonic(), []
    for step in range(begun, recipe.steps):
        for group in training.optimizer.param_groups:
            group["lr"] = recipe.rate * _rate(step, recipe)
        # a step is the same whether or not the training was stopped before
        random = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        chosen = random.choice(len(shown.meanings), size=recipe.batch, p=shown.chances)
        said = [
            "" if random.random() < recipe.silent else captions.any(shown.meanings[index], random) for index in chosen
        ]
        latents = (
            shown.latents[torch.from_numpy(chosen)].to(device).float().contiguous(memory_format=torch.channels_last)
        )
        loss = _loss(training.model, encoder, tokens(tokenizer, said).to(device), latents, alphas, generator)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        training.optimizer.step()
        training.step = step + 1
        training.average(recipe.average)
        losses.append(loss.item())
        if training.step % 100 == 0:
            speed = (training.step - begun) / (time.monotonic() - started)
            say(f"denoiser {training.step}/{recipe.steps}  loss {np.mean(losses[-100:]):.4f}  {speed:.2f} steps/s")
        if training.step % recipe.kept_every == 0 or training.step == recipe.steps:
            training.keep(kept)
            if look is not None:
                look(training.averaged, training.step)
    return training.averaged.eval()


def _loss(
    model: UNet2DConditionModel, encoder: CLIPTextModel, ids: Tensor, latents: Tensor, alphas: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The velocity's square error, at times spread evenly over the batch and a little more where noise is strong."""
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    times = (spread**0.7 * 1000).long().clamp(0, 999)[torch.randperm(count, generator=generator)].to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    alpha = alphas[times].sqrt()[:, None, None, None]
    sigma = (1 - alphas[times]).sqrt()[:, None, None, None]
    wanted = alpha * noise - sigma * latents
    with torch.autocast(latents.device.type, torch.bfloat16):
        with torch.no_grad():
            states = encoder(ids).last_hidden_state
        given = model(alpha * latents + sigma * noise, times, states).sample
    return (given.float() - wanted).square().mean()


def _rate(step: int, recipe: Recipe) -> float:
    """Up, along, and down at the end."""
    left = (recipe.steps - step) / max(1.0, recipe.falling * recipe.steps)
    return min(1.0, (step + 1) / 300, left)


@torch.no_grad()
def draw(
    model: UNet2DConditionModel, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel,
    prompts: Sequence[str], *, steps: int = 20, guidance: float = 3.0, seed: int = 0, device: str = "cpu",
) -> np.ndarray[Any, Any]:  # fmt: skip
    """A quick look while training; the shipped model is judged through sdcli itself."""
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    config = model.config
    shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        states = encoder(tokens(tokenizer, [*([""] * len(prompts)), *prompts]).to(device)).last_hidden_state
        for moment in scheduler.timesteps:
            both = model(torch.cat([latents, latents]), moment.to(device), states).sample.float()
            silent, said = both.chunk(2)
            latents = scheduler.step(silent + guidance * (said - silent), moment, latents).prev_sample
        pixels = autoencoder.decode(latents).sample.float()
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
