"""Pixels into what the VAE takes them for: a mean and a deviation for each latent, from which seeds draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from sdcli.draw.decode import in_fp32, per_channel


@dataclass(frozen=True)
class Posterior:
    """Of one image, on the host."""

    mean: Tensor
    deviation: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.dtype)
        return self.mean + self.deviation * noise


def pixels(image: Any) -> Tensor:
    """An RGB image of Pillow's as [1, 3, height, width] in -1…1; diffusers' arithmetic."""
    shares = torch.from_numpy(numpy.asarray(image, dtype=numpy.uint8)[None].astype(numpy.float32) / 255.0)
    return 2.0 * shares.permute(0, 3, 1, 2) - 1.0


@torch.no_grad()
def encode(vae: Any, image: Tensor, exact: Callable[[Any], AbstractContextManager[Any]] = in_fp32) -> Posterior:
    """One image [1, 3, height, width]; encoded again in fp32 if the first result is not finite."""
    posterior = _encode(vae, image)
    if bool(torch.isfinite(posterior.mean).all()) or vae.dtype == torch.float32:
        return posterior
    with exact(vae) as widened:
        return _encode(widened, image)


def _encode(vae: Any, image: Tensor) -> Posterior:
    given = image.to(device=vae.device, dtype=vae.dtype)
    found = vae.encode(given, return_dict=False)[0]
    return Posterior(found.mean.cpu(), found.std.cpu())


def scaled(drawn: Tensor, config: Mapping[str, Any]) -> Tensor:
    """What decoding undoes."""
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return drawn.mul(config["scaling_factor"])
    return (drawn - per_channel(mean, drawn)).mul(config["scaling_factor"]).div(per_channel(deviation, drawn))
