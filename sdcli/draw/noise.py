"""The noise of an image, from its seed: as torch draws it on the CPU, or as it does on an NVIDIA GPU, computed here.

On a GPU torch draws with Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and
takes of each block of four numbers two, for one normal value by Box and Muller's transform. A block is counted by the
value's place in the tensor and by how many tensors were drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by in each round
_LOW = 0xFFFFFFFF
_OURS = 16  # bytes of a state, before torch's own


def generator(rng: str, seed: int) -> torch.Generator:
    made = GpuGenerator("cpu") if rng == "nv" else torch.Generator("cpu")
    return made.manual_seed(seed)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """In fp32 on the CPU."""
    if isinstance(generator, GpuGenerator):
        return generator.normal(shape)
    return torch.randn(tuple(shape), generator=generator)


class GpuGenerator(torch.Generator):
    """A GPU's sequence for what an image starts from and for each step's noise. What it is as a torch.Generator is the
    CPU's sequence of the same seed: programs that draw on a GPU take other noise, such as that of a VAE's latents, from
    there too, so that it does not use up the GPU's."""

    key: int = 0  # the seed
    drawn: int = 0  # tensors so far

    def manual_seed(self, seed: int) -> GpuGenerator:
        super().manual_seed(seed)
        self.key, self.drawn = seed, 0
        return self

    def get_state(self) -> Tensor:
        return torch.cat([torch.tensor([self.key, self.drawn]).view(torch.uint8), super().get_state()])

    def set_state(self, state: Tensor) -> GpuGenerator:
        self.key, self.drawn = state[:_OURS].clone().view(torch.int64).tolist()
        super().set_state(state[_OURS:].clone())
        return self

    def normal(self, shape: Sequence[int]) -> Tensor:
        values = normal_values(self.key, self.drawn, math.prod(shape))
        self.drawn += 1
        return torch.from_numpy(values).reshape(tuple(shape))


def normal_values(seed: int, before: int, count: int) -> Any:
    """The first `count` values of a tensor that is drawn after `before` others. Where a GPU has fewer threads than the
    tensor has values, it draws those beyond in another order; here there is no such limit."""
    place = numpy.arange(count, dtype=numpy.uint64)
    nothing = numpy.zeros(count, numpy.uint64)
    first, second, _, _ = _philox((nothing + (before & _LOW), nothing + (before >> 32), place, nothing), seed)
    uniform = first * 2.0**-32 + 2.0**-33  # never 0
    angle = (second * 2.0**-32 + 2.0**-33) * (2 * math.pi)
    return (numpy.sqrt(-2.0 * numpy.log(uniform)) * numpy.sin(angle)).astype(numpy.float32)


def _philox(counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit numbers for each counter, in 64 bits."""
    a, b, c, d = counter
    key = [seed & _LOW, seed >> 32 & _LOW]
    for _ in range(ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (right >> 32) ^ b ^ key[0], right & _LOW, (left >> 32) ^ d ^ key[1], left & _LOW
        key = [(part + grown) & _LOW for part, grown in zip(key, _WEYL, strict=True)]
    return a, b, c, d


def of_steps(generators: Sequence[torch.Generator]) -> AbstractContextManager[Any]:
    """Within it, schedulers draw from a GPU's generators what these are for; from torch's own they do anyway."""
    drawing_as_gpu = any(isinstance(one, GpuGenerator) for one in generators)
    return _OfSteps() if drawing_as_gpu else nullcontext()


class _OfSteps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if func is torch.randn and isinstance(generator, GpuGenerator):
            return generator.normal(args[0]).to(kwargs.get("dtype") or torch.float32)
        return func(*args, **kwargs)
