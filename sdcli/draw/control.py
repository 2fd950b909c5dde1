"""ControlNets and T2I-Adapters: what they add inside the UNet in each of its calls. diffusers' arithmetic, without its
repetitions."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy
import torch
from torch import Tensor, nn

DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"
WITHIN = "down_intrablock_additional_residuals"


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


class Alone(nn.Module):
    """In place of the attention in which a ControlNet Union compares what it was shown. As diffusers calls it, a row of
    the batch attends to the same one of its images in all rows. Rows that were shown the same give what they gave;
    images of a batch that have control images of their own would change each other, and here do not."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.inward = nn.Linear(width, 3 * width, device="meta")
        self.inward.weight, self.inward.bias = attention.in_proj_weight, attention.in_proj_bias
        self.outward = attention.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **ignored: Any) -> tuple[Tensor, None]:
        return self.outward(self.inward(value).chunk(3, dim=-1)[2].contiguous()), None


def embedded_once(net: Any) -> Any:
    """diffusers' ControlNetModel or ControlNetUnionModel, taking embedded images from now on."""
    flipped = net.config.controlnet_conditioning_channel_order == "bgr"
    net.controlnet_cond_embedding = Hint(net.controlnet_cond_embedding, flipped=flipped)
    net.register_to_config(controlnet_conditioning_channel_order="rgb")
    for layer in getattr(net, "transformer_layes", ()):
        layer.attn = Alone(layer.attn)
    return net


def pixels(image: Any) -> Tensor:
    """A control image of Pillow's, in colours or grey and of the size that is drawn, as [1, channels, height, width] in
    0…1."""
    shares = torch.from_numpy(numpy.array(image, dtype=numpy.uint8)).float() / 255.0
    shares = shares[:, :, None] if shares.ndim == 2 else shares
    return shares[None].permute(0, 3, 1, 2).contiguous()


def rows_of(images: Iterable[Any]) -> Tensor:
    """A row for each image of a batch, or one where it is the same for all: nothing is done twice."""
    rows = [pixels(image) for image in images]
    return rows[0] if all(torch.equal(row, rows[0]) for row in rows[1:]) else torch.cat(rows)


def adapter_rows_of(images: Iterable[Any], channels: int) -> Tensor:
    """The same for T2I-Adapters, which diffusers gives pixels as they lie in an image: convolutions round by that."""
    made = [image if channels == 3 else image.convert("L") for image in images]
    return rows_of(made).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class At:
    """A moment at which nets are called: with what, and in which of the UNet's calls."""

    sample: Tensor
    timestep: Tensor
    given: Mapping[str, Any]
    call: int
    calls: int


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image that steers, how much, and where: `start` and `end` are shares of the UNet calls taken."""

    image: Tensor  # in 0…1: a row for each image of the batch, or one for all
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def acts(self, call: int, calls: int) -> bool:
        """Whether it takes part in this call; `call` counts from 0."""
        return self.weight != 0 and call / calls >= self.start and (call + 1) / calls <= self.end

    def to(self, like: Tensor) -> Self:
        return replace(self, image=self.image.to(like))


@dataclass(frozen=True, kw_only=True)
class Called:
    """A net that is called beside the UNet."""

    net: Any  # through embedded_once
    guess: bool = False  # the prompts' side of guidance alone is steered, most of all where the UNet is deepest

    @property
    def one_sided(self) -> bool:
        """A net that tells what an image is like, but not where, was trained for the prompts' side."""
        return self.guess or bool(self.net.config.global_pool_conditions)

    def _outputs(self, at: At, **given: Any) -> Iterator[Tensor]:
        down, mid = self.net(
            at.sample, at.timestep, guess_mode=self.one_sided, return_dict=False, **given, **at.given
        )  # fmt: skip
        yield from down
        yield mid


@dataclass(frozen=True, kw_only=True)
class Control(Called, Shown):
    """A ControlNet and what it is to do."""

    @property
    def images(self) -> tuple[Tensor, ...]:
        return (self.image,)

    def outputs(self, hints: Sequence[Tensor], at: At) -> Iterator[Tensor]:
        return self._outputs(at, controlnet_cond=hints[0], conditioning_scale=self.weight)


@dataclass(frozen=True, kw_only=True)
class Told(Shown):
    """An image for a ControlNet Union, which is told what it shows, by number."""

    shows: int


@dataclass(frozen=True, kw_only=True)
class United(Called):
    """A ControlNet Union: one net, and one call, for all of its images. It acts as long as one of them does: the
    others have no weight then."""

    told: tuple[Told, ...]
    kinds: Tensor | None = None  # which there are among the images: a row of ones and zeros

    def acts(self, call: int, calls: int) -> bool:
        return any(one.acts(call, calls) for one in self.told)

    def to(self, like: Tensor) -> United:
        kinds = torch.zeros(1, self.net.config.num_control_type)
        kinds[0, [one.shows for one in self.told]] = 1.0
        return replace(self, told=tuple(one.to(like) for one in self.told), kinds=kinds.to(like))

    @property
    def images(self) -> tuple[Tensor, ...]:
        return tuple(one.image for one in self.told)

    def outputs(self, hints: Sequence[Tensor], at: At) -> Iterator[Tensor]:
        assert self.kinds is not None
        weights = [one.weight if one.acts(at.call, at.calls) else 0.0 for one in self.told]
        return self._outputs(
            at, controlnet_cond=list(hints), control_type=self.kinds.expand(len(at.sample), -1),
            control_type_idx=[one.shows for one in self.told], conditioning_scale=weights,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Adapted(Shown):
    """A T2I-Adapter and what it is to do: it looks at its image once, and what it finds is added in every call."""

    net: Any


Steering = Control | United | Adapted


@dataclass(frozen=True)
class Rows:
    """Those of one UNet call."""

    images: tuple[int, ...]  # the image that each belongs to
    negative: int  # how many are of negative prompts; they come first

    @classmethod
    def of(cls, numbers: Sequence[int], images: int, guided: bool) -> Rows:
        """`numbers` as in the batch, where all negative prompts come before all prompts."""
        return cls(tuple(row % images for row in numbers), sum(row < images for row in numbers) if guided else 0)


Acting = tuple[tuple[int, ...], tuple[int, ...]]  # which T2I-Adapters, and the images of the rows


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Everything that steers one batch, and where each UNet call of a step finds its rows."""

    controls: tuple[Control | United, ...] = ()
    adapted: tuple[Adapted, ...] = ()
    rows: tuple[Rows, ...]
    calls: int  # all that the batch takes
    _hints: dict[tuple[int, int, tuple[int, ...]], Tensor] = field(default_factory=dict, compare=False, repr=False)
    _found: dict[int, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)
    _maps: dict[Acting, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def residuals(
        self, part: int, sample: Tensor, timestep: Tensor, step: int, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """More arguments of the UNet in its call `part` of this step: none where nothing acts. `sample` has the latents
        alone, `given` the arguments of these rows."""
        rows, total = self.rows[part], list[Tensor]()
        for number, control in enumerate(self.controls):
            first = rows.negative if control.one_sided else 0
            if control.acts(step, self.calls) and first < len(rows.images):
                hints = [self._hint(number, place, rows.images[first:]) for place in range(len(control.images))]
                at = At(sample[first:], timestep, _from(given, first), step, self.calls)
                total = _summed(total, [_padded(output, first) for output in control.outputs(hints, at)])
        return {**({DOWN: tuple(total[:-1]), MID: total[-1]} if total else {}), **self._features(rows.images, step)}

    def _hint(self, number: int, place: int, images: tuple[int, ...]) -> Tensor:
        """For as many rows at once as it is used for: convolutions round by that."""
        control = self.controls[number]
        given = control.images[place]
        key = number, place, images if len(given) > 1 else (0,) * len(images)
        if key not in self._hints:
            image = torch.cat([given[row : row + 1] for row in key[2]])
            self._hints[key] = control.net.controlnet_cond_embedding.embed(image)
        return self._hints[key]

    def _features(self, images: tuple[int, ...], step: int) -> dict[str, Any]:
        """What T2I-Adapters add to these rows in this step; a list of its own, since the UNet takes from it."""
        acting = tuple(number for number, one in enumerate(self.adapted) if one.acts(step, self.calls))
        if not acting:
            return {}
        if (acting, images) not in self._maps:
            for key in [key for key in self._maps if key[0] != acting]:  # a window has begun or ended
                del self._maps[key]
            found = [self._found_by(number) for number in acting]
            self._maps[acting, images] = [_of_rows(maps, images) for maps in zip(*found, strict=True)]
        return {WITHIN: list(self._maps[acting, images])}

    def _found_by(self, number: int) -> list[Tensor]:
        """One adapter's maps, a row for each of its images: each looked at alone, whatever the batch."""
        if number not in self._found:
            one = self.adapted[number]
            rows = [[found * one.weight for found in one.net(image)] for image in torch.split(one.image, 1)]
            self._found[number] = [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*rows, strict=True)]
        return self._found[number]


def _of_rows(maps: Sequence[Tensor], images: tuple[int, ...]) -> Tensor:
    """One map for the rows that belong to these images: of several adapters the sum, in the order of the list."""
    total = functools.reduce(torch.add, maps)
    if len(total) == 1:
        return total.expand(len(images), *total.shape[1:])  # takes no memory
    return torch.cat([total[row : row + 1] for row in images])


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
