"""A rough picture of latents, an eighth of the size: one colour per latent pixel, by a linear map, in no time."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows: the four latent channels; columns: red, green, blue in -1…1. Fitted to the two VAEs' latents by others:
# SD1.5's in the Hugging Face forum (thread 23204), SDXL's in the diffusers documentation.
_MAPS = {
    "sd15": ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    "sdxl": (
        (0.3448, 0.4168, 0.4395), (-0.1953, -0.0290, 0.0250), (0.1074, 0.0886, -0.0163), (-0.3730, -0.2499, -0.2088),
    ),
}  # fmt: skip


Rows = tuple[tuple[float, float, float], ...]


@torch.no_grad()
def preview(latents: Tensor, family: str, rows: Rows = ()) -> tuple[int, int, bytes]:
    """Width, height and RGB8 rows of one image's latents [channels, h, w], still noisy ones too. `rows` is the model's
    own map: a row for each channel, and perhaps one more, which every latent pixel has."""
    map_ = torch.tensor(rows or _MAPS.get(family, _MAPS["sd15"]))
    values = latents[: len(map_)].float().cpu()
    values = values / values.std().clamp(min=1.0)  # samplers differ in how much larger than the picture noise is
    if len(map_) > len(values):
        values = torch.cat([values, torch.ones_like(values[:1])])
    shares = torch.einsum("chw,cr->hwr", values, map_) * 0.5 + 0.5
    pixels = (torch.nan_to_num(shares).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    return pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes()


def frames(steps: int, wanted: int) -> frozenset[int]:
    """After which steps to take `wanted` pictures of the way, evenly, the last step always among them."""
    wanted = min(max(wanted, 0), steps)
    return frozenset(round(number * steps / wanted) for number in range(1, wanted + 1)) if wanted else frozenset()
