"""Latents into pixels, one image at a time: decoding several at once would change pixels and need more memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.plan.techniques.vae import TILES


@dataclass(frozen=True)
class RGBImage:
    """RGB8 rows; `retried` says why the image was decoded a second time."""

    width: int
    height: int
    pixels: bytes
    retried: str | None = None


class NotFinite(ArithmeticError):
    """The image holds NaN or infinity, even in fp32."""


def set_tiles(vae: Any, choice: str) -> None:
    """Tiles of a useful size: diffusers' default is as large as the images the VAE was trained on, so never used."""
    edge = TILES.get(choice)
    vae.use_tiling = edge is not None
    if edge:
        vae.tile_sample_min_size = edge
        vae.tile_latent_min_size = edge // 2 ** (len(vae.config.block_out_channels) - 1)


@contextmanager
def in_fp32(vae: Any) -> Iterator[Any]:
    before = vae.dtype
    vae.to(torch.float32)
    try:
        yield vae
    finally:
        vae.to(before)


@torch.no_grad()
def decode(vae: Any, latents: Tensor, exact: Callable[[Any], AbstractContextManager[Any]] = in_fp32) -> RGBImage:
    """One image from its latents [1, channels, h, w]; decoded again in fp32 if the first result is not finite."""
    if not bool(torch.isfinite(latents).all()):
        raise NotFinite("the latents are not finite")
    image = _decode(vae, latents)
    if bool(torch.isfinite(image).all()):
        return _rgb(image, None)
    before = vae.dtype
    if before == torch.float32:
        raise NotFinite("the decoded image is not finite")
    del image
    with exact(vae) as widened:
        image = _decode(widened, latents)
    if not bool(torch.isfinite(image).all()):
        raise NotFinite("the decoded image is not finite, even in fp32")
    return _rgb(image, f"not finite in {str(before).removeprefix('torch.')}")


def _decode(vae: Any, latents: Tensor) -> Tensor:
    latents = latents.to(device=vae.device, dtype=vae.dtype)
    config = vae.config
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        latents = latents * per_channel(deviation, latents) / config.scaling_factor + per_channel(mean, latents)
    else:
        latents = latents / config.scaling_factor
    image: Tensor = vae.decode(latents, return_dict=False)[0]
    return image


def per_channel(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1).to(like)


def _rgb(image: Tensor, retried: str | None) -> RGBImage:
    """diffusers' rounding: to 0…1 in the VAE's dtype, to 8 bits in fp32."""
    shares = (image[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu()
    pixels = (shares * 255).round().to(torch.uint8).contiguous()
    return RGBImage(pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes(), retried)
