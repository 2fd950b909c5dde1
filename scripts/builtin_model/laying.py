"""Colours are the decoder's to lay on: latents of things stay what they are, and channels beside them tell the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from scripts.builtin_model.artwork import Artwork
from scripts.builtin_model.autoencoder import NOISE, descend, distance, encoded, keep_step, rate, resumed, tensor
from scripts.builtin_model.fields import COUNT, DRAWN, Colours, any_ground, matte, with_colours
from scripts.builtin_model.images import GROUNDS, Pixels, grey, together

LOUD = (*[NOISE] * DRAWN, 0.2, *[0.05] * (COUNT - 1))  # of each channel, added while training


@dataclass(frozen=True)
class Recipe:
    crop: int = 96
    crops: int = 8  # in a batch
    steps: int = 6000
    whole: float = 0.15  # the last part of the steps, on two whole images each
    reading: int = 800  # steps of the encoder, on half as many whole images as crops
    rate: float = 2e-3


def widened(plain: AutoencoderKL) -> AutoencoderKL:
    """With the channels of scripts/builtin_model/fields.py, of which at first nothing comes."""
    config = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    channels = DRAWN + COUNT
    model = AutoencoderKL(**config | {"latent_channels": channels})
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        if state[name].shape == value.shape:
            state[name] = value.clone()
            continue
        state[name].zero_()
        rows = _places(value.shape[0], state[name].shape[0])
        if value.ndim == 1:
            state[name][rows] = value
        else:
            state[name][rows[:, None], _places(value.shape[1], state[name].shape[1])] = value
    new = torch.arange(DRAWN, channels)
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"][new, new] = 1
    state["quant_conv.bias"][channels + new] = 2 * math.log(NOISE)
    model.load_state_dict(state)
    return model


def _places(size: int, all_of: int) -> Tensor:
    """Where a thing's own channels stand: the means come first, then how sure these are."""
    if size == all_of:
        return torch.arange(size)
    return torch.cat([torch.arange(DRAWN), torch.arange(DRAWN) + DRAWN + COUNT])[:size]


@dataclass(frozen=True)
class Images:
    """Artwork, and the latents it has on white."""

    artwork: list[Pixels]
    latents: Tensor
    grey: list[bool]

    def any(self, random: np.random.Generator, count: int, crop: int | None = None) -> Laid:
        """Whole images or parts of them, in colours as they may be asked for or chosen, and all between."""
        rows = random.integers(len(self.artwork), size=count)
        cells = self.latents.shape[-1]
        edge = self.artwork[0].shape[0] // cells
        across = cells if crop is None else crop // edge
        top, left = (int(place) for place in random.integers(0, cells - across + 1, 2))
        part = (slice(top, top + across), slice(left, left + across))
        pixels = tuple(slice(place.start * edge, place.stop * edge) for place in part)
        drawn = [self.artwork[row][pixels] for row in rows]
        colours = [_any_colours(random, self.grey[row]) for row in rows]
        latents = self.latents[torch.from_numpy(rows)][:, :, *part].float()
        return Laid(drawn, colours, torch.cat([latents, matte(np.stack(drawn)[..., 3], across)[:, None]], dim=1))


@dataclass(frozen=True)
class Laid:
    artwork: list[Pixels]
    colours: list[Colours]
    drawn: Tensor  # the channels of the things, and the matte

    def grounded(self) -> Laid:
        """Only the grounds are in their colours."""
        return Laid(self.artwork, [Colours(one.ground) for one in self.colours], self.drawn)

    def seen(self, device: str) -> Tensor:
        return tensor(np.stack([one.on(rgba) for rgba, one in zip(self.artwork, self.colours, strict=True)]), device)

    def latents(self, device: str) -> Tensor:
        return with_colours(self.drawn, self.colours).to(device)


def images(artwork: Artwork, plain: AutoencoderKL, several: int, seed: int, device: str) -> Images:
    """Every image, and some of `several` things."""
    random = np.random.default_rng(seed)
    every = [rgba for style in artwork.images.values() for rgba in style.values()]
    for _ in range(several):
        every.append(together([every[row] for row in random.integers(len(every), size=random.integers(2, 5))]))
    parts = [every[start : start + 64] for start in range(0, len(every), 64)]
    latents = [encoded(plain, np.stack([Colours().on(rgba) for rgba in part]), device) for part in parts]
    return Images(every, torch.cat(latents), [grey(rgba) for rgba in every])


def train(
    shown: Images, plain: AutoencoderKL, recipe: Recipe, kept: Path, seed: int, device: str,
    say: Callable[[str], None],
) -> AutoencoderKL:  # fmt: skip
    """The decoder learns to lay colours on, then the encoder to see things apart from their ground. Resumes."""
    torch.manual_seed(seed)
    model = widened(plain).to(device, memory_format=torch.channels_last)
    loud = torch.tensor(LOUD, device=device)[:, None, None]

    def lay(random: np.random.Generator, left: float) -> tuple[Tensor, float]:
        one = shown.any(random, 2) if left < recipe.whole else shown.any(random, recipe.crops, recipe.crop)
        latents = one.latents(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            drawn = model.decode(latents + loud * torch.randn_like(latents)).sample.float()
        return distance(drawn, one.seen(device))

    def read(random: np.random.Generator, left: float) -> tuple[Tensor, float]:
        one = shown.any(random, recipe.crops // 2).grounded()
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            mean = model.encode(one.seen(device)).latent_dist.mean.float()
        loss = (mean - one.latents(device)).square().mean()
        return loss, loss.item()

    decoder = [*model.post_quant_conv.parameters(), *model.decoder.parameters()]
    encoder = [*model.encoder.parameters(), *model.quant_conv.parameters()]
    _course("colours laid, dB", model, decoder, lay, recipe.steps, recipe.rate, kept, seed, say)
    second = kept.with_stem(f"{kept.stem}-read")
    _course("images read, off by", model, encoder, read, recipe.reading, recipe.rate / 4, second, seed, say)
    return model.eval()


def _course(
    what: str, model: AutoencoderKL, moving: list[torch.nn.Parameter],
    learn: Callable[[np.random.Generator, float], tuple[Tensor, float]], steps: int, highest: float, kept: Path,
    seed: int, say: Callable[[str], None],
) -> None:  # fmt: skip
    """`learn` gets the part of the steps that is left. Resumes from `kept`."""
    optimizer = torch.optim.AdamW(moving, lr=highest, betas=(0.9, 0.99), weight_decay=1e-4)
    begun = resumed(model, optimizer, kept, str(moving[0].device))
    started, seen = time.monotonic(), []
    for step in range(begun, steps):
        for group in optimizer.param_groups:
            group["lr"] = highest * rate(step, steps, 100)
        loss, near = learn(np.random.default_rng((seed, step)), 1 - step / steps)
        descend(loss, optimizer, moving)
        seen.append(near)
        if (step + 1) % 100 == 0:
            speed = (step + 1 - begun) / (time.monotonic() - started)
            say(f"{what} {np.mean(seen[-100:]):.3f}  {step + 1}/{steps}  {speed:.2f} steps/s")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            keep_step(model, optimizer, step + 1, kept)


def _any_colours(random: np.random.Generator, greys: bool) -> Colours:
    kind = random.random()
    if kind < 0.4:
        ground = GROUNDS["white"] if kind < 0.12 else list(GROUNDS.values())[random.integers(len(GROUNDS))]
    elif kind < 0.9:
        ground = any_ground(random)
    else:
        ground = (int(random.integers(256)), int(random.integers(256)), int(random.integers(256)))
    hue = None if random.random() < 0.6 else float(random.random())
    vivid, light = (float(random.uniform(-1.2, 1.2)) if random.random() < 0.8 else 0.0 for _ in range(2))
    return Colours(ground, hue, hue is not None and greys, vivid, light)


@torch.no_grad()
def fidelity(model: AutoencoderKL, shown: Images, seed: int, device: str, count: int = 200) -> tuple[float, float]:
    """dB of whole images: decoded from what they mean, and read and decoded."""
    random = np.random.default_rng(seed)
    square = np.zeros(2)
    for _ in range(0, count, 10):
        one = shown.any(random, 10)
        wanted = one.seen(device)
        for place, latents in enumerate((one.latents(device), model.encode(wanted).latent_dist.mean)):
            drawn = model.decode(latents).sample.clamp(-1, 1)
            square[place] += (drawn - wanted).square().mean().item() * 10
    laid, read = -10 * np.log10(square / count / 4)
    return float(laid), float(read)


def preview(shown: Images, seed: int, count: int = 600) -> list[list[float]]:
    """Red, green and blue of each latent channel, and one row that every place has."""
    one = shown.any(np.random.default_rng(seed), count)
    latents = one.latents("cpu")
    small = functional.interpolate(one.seen("cpu"), size=tuple(latents.shape[-2:]), mode="area")
    given = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    wanted = small.permute(0, 2, 3, 1).reshape(-1, 3)
    rows = torch.linalg.lstsq(torch.cat([given, torch.ones(len(given), 1)], dim=1), wanted).solution
    return [[round(value, 4) for value in row] for row in rows.tolist()]
