"""ControlNets: what they add inside the UNet in each of its calls. diffusers' arithmetic, without its repetitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"


class Hint(nn.Module):
    """In place of a ControlNet's embedding of its image. That depends on no step, so `embed` is called once for all of
    them, and in each call the result passes through here."""

    def __init__(self, embedding: nn.Module, *, flipped: bool) -> None:
        super().__init__()
        self.embedding = embedding
        self.flipped = flipped

    def embed(self, image: Tensor) -> Tensor:
        """Of rows in 0…1, red first."""
        embedded: Tensor = self.embedding(image.flip(1) if self.flipped else image)
        return embedded

    def forward(self, embedded: Tensor) -> Tensor:
        return embedded


def embedded_once(net: Any) -> Any:
    """diffusers' ControlNetModel, taking an embedded image from now on."""
    flipped = net.config.controlnet_conditioning_channel_order == "bgr"
    net.controlnet_cond_embedding = Hint(net.controlnet_cond_embedding, flipped=flipped)
    net.register_to_config(controlnet_conditioning_channel_order="rgb")
    return net


def pixels(image: Any) -> Tensor:
    """A control image of Pillow's, RGB and of the size that is drawn, as [1, 3, height, width] in 0…1."""
    shares = torch.from_numpy(numpy.array(image, dtype=numpy.uint8)[None]).float() / 255.0
    return shares.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet and what it is to do. `start` and `end` are shares of the UNet calls taken."""

    net: Any  # through embedded_once
    image: Tensor  # in 0…1: a row for each image of the batch, or one for all
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False  # the prompts' side of guidance alone is steered, most of all where the UNet is deepest

    def acts(self, call: int, calls: int) -> bool:
        """Whether it takes part in this call; `call` counts from 0."""
        return self.weight != 0 and call / calls >= self.start and (call + 1) / calls <= self.end

    @property
    def one_sided(self) -> bool:
        """A net that tells what an image is like, but not where, was trained for the prompts' side."""
        return self.guess or bool(self.net.config.global_pool_conditions)


@dataclass(frozen=True)
class Rows:
    """Those of one UNet call."""

    images: tuple[int, ...]  # the image that each belongs to
    negative: int  # how many are of negative prompts; they come first

    @classmethod
    def of(cls, numbers: Sequence[int], images: int, guided: bool) -> Rows:
        """`numbers` as in the batch, where all negative prompts come before all prompts."""
        return cls(tuple(row % images for row in numbers), sum(row < images for row in numbers) if guided else 0)


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Everything that steers one batch, and where each UNet call of a step finds its rows."""

    controls: tuple[Control, ...]
    rows: tuple[Rows, ...]
    calls: int  # all that the batch takes
    _hints: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def residuals(
        self, part: int, sample: Tensor, timestep: Tensor, step: int, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """More arguments of the UNet in its call `part` of this step: none where nothing acts. `sample` has the latents
        alone, `given` the arguments of these rows."""
        rows, total = self.rows[part], list[Tensor]()
        for number, control in enumerate(self.controls):
            first = rows.negative if control.one_sided else 0
            if control.acts(step, self.calls) and first < len(rows.images):
                hint = self._hint(number, control, rows.images[first:])
                outputs = _outputs(control, hint, sample[first:], timestep, _from(given, first))
                total = _summed(total, [_padded(output, first) for output in outputs])
        return {DOWN: tuple(total[:-1]), MID: total[-1]} if total else {}

    def _hint(self, number: int, control: Control, images: tuple[int, ...]) -> Tensor:
        """For as many rows at once as it is used for: convolutions round by that."""
        key = number, images if len(control.image) > 1 else (0,) * len(images)
        if key not in self._hints:
            image = torch.cat([control.image[row : row + 1] for row in key[1]])
            self._hints[key] = control.net.controlnet_cond_embedding.embed(image)
        return self._hints[key]


def _outputs(
    control: Control, hint: Tensor, sample: Tensor, timestep: Tensor, given: Mapping[str, Any]
) -> Iterator[Tensor]:
    down, mid = control.net(
        sample, timestep, controlnet_cond=hint, conditioning_scale=control.weight, guess_mode=control.one_sided,
        return_dict=False, **given,
    )  # fmt: skip
    yield from down
    yield mid


def _from(given: Mapping[str, Any], first: int) -> dict[str, Any]:
    """What a ControlNet takes of the UNet's arguments: its text, SDXL's sizes; without the rows before `first`."""
    taken: dict[str, Any] = {"encoder_hidden_states": given["encoder_hidden_states"][first:]}
    if "added_cond_kwargs" in given:
        taken["added_cond_kwargs"] = {name: value[first:] for name, value in given["added_cond_kwargs"].items()}
    return taken


def _padded(output: Tensor, first: int) -> Tensor:
    """With nothing to add to the rows of negative prompts."""
    return torch.cat([output.new_zeros((first, *output.shape[1:])), output]) if first else output


def _summed(total: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """In the order of the list: sums round by that. In place, since these are large, where pooled ones do not widen."""
    if not total:
        return outputs
    return [
        before.add_(output) if before.shape == output.shape else before + output
        for before, output in zip(total, outputs, strict=True)
    ]
