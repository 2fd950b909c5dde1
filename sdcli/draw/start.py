"""What a batch starts from: latents of its images with noise on them, and what keeps the unmasked part as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw.encode_image import Posterior, scaled
from sdcli.draw.noise import normal
from sdcli.draw.transfers import without_waiting
from sdcli.request.request import Start


@dataclass(frozen=True)
class EncodedStart:
    """One job's, on the host. `mask` is 1 where an image is drawn anew, one value for each latent."""

    posterior: Posterior | None  # None where nothing of the image is needed
    masked: Posterior | None = None  # of the image with its masked part blank, for UNets that look at it
    mask: Tensor | None = None
    edited: Tensor | None = None  # the image's latents as UNets that edit it see them


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A batch's latents before noise, and the noise, on the host and in the UNet's number type."""

    latents: Tensor | None  # None: nothing but noise
    noise: Tensor
    mask: Tensor | None = None
    beside: Tensor | None = None  # channels that the UNet sees beside the latents
    edited: bool = False  # these are the image's, which one side of guidance does not see

    def beside_on(self, sides: int) -> Tensor:
        assert self.beside is not None
        rows = [self.beside] * sides
        if self.edited and sides > 1:
            rows[-1] = torch.zeros_like(self.beside)
        return torch.cat(rows) if sides > 1 else self.beside

    def kept_on(self, device: torch.device) -> Kept | None:
        if self.mask is None or self.latents is None or self.beside is not None:
            return None
        return Kept(latents=self.latents, noise=self.noise, mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The unmasked part, put back after every call with as much noise as the next one expects."""

    latents: Tensor
    noise: Tensor
    mask: Tensor  # on the device

    def onto(self, drawn: Tensor, scheduler: Any, following: Tensor | None) -> Tensor:
        """`following`: the next call's timestep. The noise is added on the host, where schedulers keep their tables."""
        old = self.latents
        if following is not None:
            old = scheduler.add_noise(old, self.noise, following[None])
        with without_waiting(drawn.device):
            old = old.to(drawn.device)
        return (1 - self.mask) * old + self.mask * drawn


def begun(
    starts: Sequence[Start | None], encoded: Sequence[EncodedStart], generators: Sequence[torch.Generator],
    config: Mapping[str, Any], *, shape: tuple[int, int, int], dtype: torch.dtype, sees_mask: bool,
) -> Begun:  # fmt: skip
    """Every image draws from its own generator, in diffusers' order: its latents, the noise, its masked latents.
    `config` is the VAE's."""
    latents, noise, masked, content = [], [], [], []
    for start, one, generator in zip(starts, encoded, generators, strict=True):
        latents.append(None if one.posterior is None else one.posterior.sample(generator))
        noise.append(normal((1, *shape), generator))
        if one.mask is not None:
            # diffusers draws these for every UNet, so that the later draws of stochastic samplers are the same
            masked.append(one.masked.sample(generator) if one.masked else torch.randn((1, *shape), generator=generator))
        if start is not None and start.repaint is not None and start.repaint.content in ("noise", "nothing"):
            fresh = torch.randn((1, *shape), generator=generator)
            content.append(fresh if start.repaint.content == "noise" else torch.zeros_like(fresh))
    known = [one for one in latents if one is not None]
    whole = scaled(torch.cat(known), config).to(dtype) if known else None
    masks = [one.mask for one in encoded if one.mask is not None]
    mask = torch.cat(masks).to(dtype) if masks else None
    if whole is not None and mask is not None:
        whole = whole.contiguous()  # as diffusers lays it out here: convolutions round by that
    if content and whole is not None and mask is not None:
        whole = (1 - mask) * whole + mask * torch.cat(content).to(dtype)
    edited = [one.edited for one in encoded if one.edited is not None]
    beside = torch.cat(edited).to(dtype) if edited else None
    if sees_mask and mask is not None:
        beside = torch.cat([mask, scaled(torch.cat(masked), config).to(dtype)], dim=1)
    return Begun(
        latents=whole, noise=torch.cat(noise).to(dtype), mask=mask, beside=beside, edited=bool(edited)
    )  # fmt: skip


def enlarged(
    latents: Tensor, generators: Sequence[torch.Generator], *, shape: tuple[int, int, int], dtype: torch.dtype
) -> Begun:
    """Latents stretched to another size, in fp32 on the host: the same on every device; and new noise."""
    larger = functional.interpolate(latents.float().cpu(), size=shape[1:], mode="bilinear")
    noise = torch.cat([normal((1, *shape), generator) for generator in generators])
    return Begun(latents=larger.to(dtype), noise=noise.to(dtype))
