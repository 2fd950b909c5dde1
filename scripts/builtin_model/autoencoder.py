"""The autoencoder: an AutoencoderKL trained on crops, whose own weights bring latents to mean 0 and deviation 1."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from scripts.builtin_model.artwork import Artwork
from scripts.builtin_model.images import GROUNDS, HUES, any_look, image

NOISE = 0.1  # of a latent's deviation, added while training: the decoder forgives a denoiser's small errors


@dataclass(frozen=True)
class Recipe:
    size: int = 128  # of a whole image
    crop: int = 64
    widths: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 8
    steps: int = 6000
    batch: int = 12
    rate: float = 2e-3
    pool: int = 3000  # images drawn beforehand; every crop comes from one of them


def new(recipe: Recipe) -> AutoencoderKL:
    levels = len(recipe.widths)
    return AutoencoderKL(
        block_out_channels=recipe.widths, latent_channels=recipe.latent_channels, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8, sample_size=recipe.size, scaling_factor=1.0, force_upcast=False,
    )  # fmt: skip


def pool(artwork: Artwork, count: int, seed: int) -> np.ndarray[Any, Any]:
    """Images of every thing, some on coloured grounds and in other colours."""
    random = np.random.default_rng(seed)
    every = [rgba for style in artwork.images.values() for rgba in style.values()]
    grounds, hues = list(GROUNDS.values()), list(HUES.values())
    found = []
    for number in range(count):
        fixed: dict[str, Any] = {}
        if random.random() < 0.3:
            fixed["ground"] = grounds[random.integers(len(grounds))]
        if random.random() < 0.25:
            fixed["hue"] = hues[random.integers(len(hues))]
        found.append(image(every[number % len(every)], any_look(random, **fixed)))
    return np.stack(found)


def train(
    artwork: Artwork, recipe: Recipe, kept: Path, seed: int, device: str, say: Callable[[str], None]
) -> AutoencoderKL:
    """Resumes from `kept`."""
    torch.manual_seed(seed)
    model = new(recipe).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    begun = resumed(model, optimizer, kept, device)
    if begun >= recipe.steps:
        return model.eval()
    crops = _crops(pool(artwork, recipe.pool, seed), recipe, seed + begun, device)
    started, shown = time.monotonic(), begun
    for step in range(begun, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate(step, recipe.steps)
        wanted = next(crops)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            loss, seen = _loss(model, wanted)
        descend(loss, optimizer, model.parameters())
        if (step + 1) % 100 == 0:
            speed = (step + 1 - shown) / (time.monotonic() - started)
            say(f"autoencoder {step + 1}/{recipe.steps}  {seen:.1f} dB  {speed:.1f} steps/s")
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            keep_step(model, optimizer, step + 1, kept)
    return model.eval()


def _loss(model: AutoencoderKL, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
    mean = model.encode(wanted).latent_dist.mean.float()
    noisy = mean + NOISE * mean.detach().std(dim=(0, 2, 3), keepdim=True) * torch.randn_like(mean)
    loss, seen = distance(model.decode(noisy).sample.float(), wanted)
    return loss + 1e-3 * mean.square().mean(), seen


def distance(drawn: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
    """In values and in edges; and in dB."""
    far = drawn - wanted
    edges = (far.diff(dim=-1).abs().mean() + far.diff(dim=-2).abs().mean()) / 2
    square = far.square().mean()
    return far.abs().mean() + 2 * square + edges, -10 * math.log10(max(1e-9, square.item() / 4))


def _crops(images: np.ndarray[Any, Any], recipe: Recipe, seed: int, device: str) -> Iterator[torch.Tensor]:
    random = np.random.default_rng(seed)
    most = recipe.size - recipe.crop
    while True:
        chosen = random.integers(len(images), size=recipe.batch)
        corners = random.integers(most + 1, size=(recipe.batch, 2))
        cut = [
            images[index, y : y + recipe.crop, x : x + recipe.crop]
            for index, (y, x) in zip(chosen, corners, strict=True)
        ]
        yield tensor(np.stack(cut), device)


def tensor(images: np.ndarray[Any, Any], device: str) -> torch.Tensor:
    found = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return found.contiguous(memory_format=torch.channels_last)


def rate(step: int, steps: int, warm: int = 200) -> float:
    """Up in a line, down in half a cosine."""
    return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-4


# --- twice as large: one more level outside of a trained one, whose latents stay what they are


@dataclass(frozen=True)
class Outer:
    reading: int = 1500  # steps of the encoder's level
    crop: int = 64
    steps: int = 500
    batch: int = 4
    rate: float = 2e-3
    pool: int = 3000


def widened(inner: AutoencoderKL) -> AutoencoderKL:
    """Reads and draws images twice as large through the same latents; at first it merely repeats each pixel."""
    config = {name: value for name, value in inner.config.items() if not name.startswith("_")}
    levels = len(inner.config.block_out_channels) + 1
    config |= {
        "block_out_channels": (inner.config.block_out_channels[0], *inner.config.block_out_channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "sample_size": 2 * inner.config.sample_size,
    }  # fmt: skip
    model = AutoencoderKL(**config)
    state = model.state_dict()
    for name, value in inner.state_dict().items():
        if name.startswith("encoder.down_blocks."):
            number, rest = name.removeprefix("encoder.down_blocks.").split(".", 1)
            name = f"encoder.down_blocks.{int(number) + 1}.{rest}"
        if not name.startswith("encoder.conv_in"):
            state[name] = value.clone()
    model.load_state_dict(state)
    with torch.no_grad():
        torch.nn.init.dirac_(model.encoder.conv_in.weight)
        torch.nn.init.dirac_(model.decoder.up_blocks[-2].upsamplers[0].conv.weight)
        for block in (model.encoder.down_blocks[0], model.decoder.up_blocks[-1]):
            for resnet in block.resnets:
                resnet.conv2.weight.zero_()
                resnet.conv2.bias.zero_()
        model.encoder.conv_in.bias.zero_()
        model.decoder.up_blocks[-2].upsamplers[0].conv.bias.zero_()
    return model


def train_outer(
    artwork: Artwork, inner: AutoencoderKL, recipe: Outer, kept: Path, seed: int, device: str,
    say: Callable[[str], None],
) -> AutoencoderKL:  # fmt: skip
    """The outermost levels alone, the encoder's on crops and the decoder's on whole images. Resumes from `kept`."""
    torch.manual_seed(seed)
    inner = inner.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    model = widened(inner).to(device, memory_format=torch.channels_last).requires_grad_(False)
    for part in (*model.decoder.up_blocks[-2:], model.decoder.conv_norm_out, model.decoder.conv_out):
        part.requires_grad_(True)
    # torch crashes in the backward of a group norm whose input needs no gradient
    model.decoder.up_blocks[-2].resnets[0].norm1.requires_grad_(False)
    moving = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    begun = resumed(model, optimizer, kept, device)
    if begun >= recipe.steps:
        return model.eval()
    images = pool(artwork, recipe.pool, seed)
    if not begun:
        _read_alike(model, inner, images, recipe, seed, device)
    started, seen = time.monotonic(), []
    for step in range(begun, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate(step, recipe.steps, 50)
        random = np.random.default_rng((seed, step))
        wanted = tensor(images[random.integers(len(images), size=recipe.batch)], device)
        small = functional.avg_pool2d(wanted, 2)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            with torch.no_grad():
                mean = inner.encode(small).latent_dist.mean.float()
                noisy = mean + NOISE * torch.randn_like(mean)  # of latents that are level
            drawn = model.decode(noisy).sample.float()
        loss, shown = distance(drawn, wanted)
        descend(loss, optimizer, moving)
        seen.append(shown)
        if (step + 1) % 50 == 0:
            speed = (step + 1 - begun) / (time.monotonic() - started)
            say(f"outer level {step + 1}/{recipe.steps}  {np.mean(seen[-50:]):.1f} dB  {speed:.2f} steps/s")
        if (step + 1) % 200 == 0 or step + 1 == recipe.steps:
            keep_step(model, optimizer, step + 1, kept)
    return model.eval()


def _read_alike(
    model: AutoencoderKL, inner: AutoencoderKL, images: np.ndarray[Any, Any], recipe: Outer, seed: int, device: str
) -> None:
    """Two convolutions that read an image as the inner ones read it at half its size."""
    first, second = model.encoder.conv_in, model.encoder.down_blocks[0].downsamplers[0]
    moving = [*first.parameters(), *second.parameters()]
    for value in moving:
        value.requires_grad_(True)
    with torch.no_grad():
        first.weight.add_(0.05 * torch.randn_like(first.weight))  # else some channels would stay dead
    optimizer = torch.optim.Adam(moving, lr=recipe.rate)
    random = np.random.default_rng(seed)
    for step in range(recipe.reading):
        for group in optimizer.param_groups:
            group["lr"] = 2 * recipe.rate * rate(step, recipe.reading, 50)
        chosen = images[random.integers(len(images), size=recipe.batch)]
        left, top = random.integers(0, chosen.shape[1] - recipe.crop + 1, 2)
        whole = tensor(chosen[:, top : top + recipe.crop, left : left + recipe.crop], device)
        with torch.no_grad():
            wanted = inner.encoder.conv_in(functional.avg_pool2d(whole, 2))
        loss = (second(first(whole)) - wanted).square().mean() / wanted.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for value in moving:
        value.requires_grad_(False)


@torch.no_grad()
def encoded(model: AutoencoderKL, images: np.ndarray[Any, Any], device: str, batch: int = 32) -> torch.Tensor:
    """Means, in fp16 on the CPU."""
    found = []
    for start in range(0, len(images), batch):
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            mean = model.encode(tensor(images[start : start + batch], device)).latent_dist.mean
        found.append(mean.half().cpu())
    return torch.cat(found)


@torch.no_grad()
def fidelity(model: AutoencoderKL, images: np.ndarray[Any, Any], device: str) -> float:
    """dB of the mean square error over whole images."""
    square = 0.0
    for start in range(0, len(images), 16):
        wanted = tensor(images[start : start + 16], device)
        drawn = model.decode(model.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
        square += (drawn - wanted).square().mean(dim=(1, 2, 3)).sum().item()
    return -10 * math.log10(max(1e-9, square / len(images) / 4))


@torch.no_grad()
def level(model: AutoencoderKL, latents: torch.Tensor) -> None:
    """Each channel to mean 0 and deviation 1, folded into the 1×1 convolutions on both sides of the latents."""
    latents = latents.float()
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    before, after = model.quant_conv, model.post_quant_conv
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.weight[channels:] = 0
    before.bias[channels:] = 2 * math.log(NOISE)
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, moving: Iterable[torch.Tensor]) -> None:
    """One step, never a long one."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moving, 1.0)
    optimizer.step()


def resumed(model: torch.nn.Module, optimizer: torch.optim.Optimizer, kept: Path, device: str) -> int:
    """The step to go on from, with model and optimizer as they were then."""
    if not kept.exists():
        return 0
    state = torch.load(kept, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def keep_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, kept: Path) -> None:
    keep({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, kept)


def keep(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a training that is killed goes on from the last one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
